package netfilter

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages of nfnetlink_log (enum nfulnl_msg_types).
const (
	msgLogPacket = unix.NFNL_SUBSYS_ULOG<<8 + iota
	msgLogConfig
)

// What is said in them (linux/netfilter/nfnetlink_log.h).
const (
	logCommand = 1
	logMode    = 2
	logTimeout = 4
	logPayload = 9

	logBind       = 1
	logCopyPacket = 2
)

const (
	// snap is how much of a packet we see: the longest head of IPv4 and two
	// ports.
	snap = 60 + 4
	// flush is how long packets are gathered for one message, in hundredths of
	// a second.
	flush = 5
)

// Refusal is a packet that the firewall refused, and said so.
type Refusal struct {
	Proto    uint8 // unix.IPPROTO_TCP or UDP
	From, To netip.AddrPort
}

// Refusals tells of refused packets in one namespace.
type Refusals struct{ packets *socket }

// OpenRefusals begins to hear of what rules log to group, in the thread's
// network namespace.
func OpenRefusals(group uint16) (*Refusals, error) {
	s, err := open()
	if err != nil {
		return nil, failed("hear of refused connections", err)
	}
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = networkOrder
	ae.Bytes(logCommand, []byte{logBind})
	ae.Bytes(logMode, append(networkOrder.AppendUint32(nil, snap), logCopyPacket, 0))
	ae.Uint32(logTimeout, flush)
	b, err := ae.Encode()
	if err == nil {
		err = s.ask(msgLogConfig, unix.NLM_F_ACK, append(nfgen(group), b...), nil)
	}
	if err != nil {
		s.Close()
		return nil, failed("hear of refused connections", err)
	}
	return &Refusals{s}, nil
}

// Stop ends a Next that waits, and every later one, with os.ErrClosed. The rest
// can be had by Drain.
func (r *Refusals) Stop() { r.packets.wake() }

// Close lets go of the namespace.
func (r *Refusals) Close() { r.packets.Close() }

// Next waits until something was refused, and passes it on. unix.ENOBUFS says
// that some was lost, os.ErrClosed that Stop or Close was called.
func (r *Refusals) Next(each func(Refusal)) error {
	if err := r.packets.receive(refused(each)); err != nil {
		return failed("hear of a refused connection", err)
	}
	return nil
}

// Drain passes on what the kernel has told so far.
func (r *Refusals) Drain(each func(Refusal)) error {
	if err := r.packets.drain(refused(each)); err != nil {
		return failed("hear of a refused connection", err)
	}
	return nil
}

// refused reads packets that were logged.
func refused(each func(Refusal)) func(uint16, uint32, []byte) error {
	return func(kind uint16, _ uint32, data []byte) error {
		if kind != msgLogPacket {
			return nil
		}
		ad, err := attributes(data)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == logPayload {
				if refused, ok := parsePacket(ad.Bytes()); ok {
					each(refused)
				}
			}
		}
		return ad.Err()
	}
}

// parsePacket reads the ends of a TCP or UDP packet from its IP header on. It is
// a stranger's: whatever is not as it should be is not ok. Of IPv6 those with
// extension headers are not read.
func parsePacket(p []byte) (r Refusal, ok bool) {
	var src, dst netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		header := int(p[0]&15) * 4
		if header < 20 || header > len(p) {
			return r, false
		}
		r.Proto = p[9]
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		p = p[header:]
	case len(p) >= 40 && p[0]>>4 == 6:
		r.Proto = p[6]
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		p = p[40:]
	}
	if r.Proto != unix.IPPROTO_TCP && r.Proto != unix.IPPROTO_UDP || len(p) < 4 || !src.IsValid() {
		return Refusal{}, false
	}
	r.From = netip.AddrPortFrom(src, binary.BigEndian.Uint16(p))
	r.To = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:]))
	return r, true
}
