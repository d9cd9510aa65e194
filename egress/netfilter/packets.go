package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

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
	logCommand   = 1 // of a configuration: NFULA_CFG_CMD
	logRoom      = 3
	logThreshold = 5
	logFlags     = 6

	logBind     = 1 // NFULNL_CFG_CMD_BIND
	logNumbered = 1 // NFULNL_CFG_F_SEQ

	logPayload = 9 // of a packet: from the header of IP on
	logNumber  = 12
)

const (
	// PacketSize is how much of a packet a rule should log, in bytes: the
	// largest IPv4 header and the ports behind it, or IPv6's with some
	// extensions.
	PacketSize = 96
	// packetRoom is what the kernel sets aside for one packet, in bytes. By
	// default it is a page, and a socket has room for few.
	packetRoom = 512
)

// Packet is one that a rule logged, as far as where it was to go. Ports are 0
// where there are none, as in a later fragment, or behind extension headers.
type Packet struct {
	Number   uint32 // rises by one in a group
	Proto    uint8  // of IP
	From, To netip.AddrPort
}

// OpenPackets opens, in the thread's network namespace, a socket that does not
// block on which the kernel tells of packets that rules log to group: each at
// once and by itself, with a number. What finds no room in queue bytes is lost.
func OpenPackets(group uint16, queue int) (*os.File, error) {
	s, err := openPackets(group, queue)
	if err != nil {
		return nil, err
	}
	return s.file, nil
}

func openPackets(group uint16, queue int) (*socket, error) {
	s, err := open(queue)
	if err == nil {
		if err = s.bind(group); err != nil {
			s.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot hear of refused packets: %w\nthe kernel's module nfnetlink_log is needed", err)
	}
	return s, nil
}

func (s *socket) bind(group uint16) error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = networkOrder
	ae.Bytes(logCommand, []byte{logBind})
	ae.Uint32(logRoom, packetRoom)
	ae.Uint32(logThreshold, 1)
	ae.Uint16(logFlags, logNumbered)
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	return s.ask(msgLogConfig, unix.NLM_F_ACK, append(nfgen(group), b...), nil)
}

// ParsePacket reads a message of OpenPackets' socket, of which kind is the type
// (netlink(7)). It is a stranger's: what is not as it should be is not ok.
func ParsePacket(kind uint16, data []byte) (p Packet, ok bool) {
	if kind != msgLogPacket {
		return p, false
	}
	ad, err := attributes(data)
	if err != nil {
		return p, false
	}
	for ad.Next() {
		switch ad.Type() {
		case logNumber:
			p.Number = ad.Uint32()
		case logPayload:
			ok = p.parse(ad.Bytes())
		}
	}
	return p, ok && ad.Err() == nil
}

// parse reads the headers of a packet: RFC 791, 3.1; RFC 8200, 3.
func (p *Packet) parse(b []byte) bool {
	var src, dst netip.Addr
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Proto = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff; offset == 0 {
			rest = b[min(int(b[0]&15)*4, len(b)):]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Proto = b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		rest = b[40:]
	default:
		return false
	}
	var ports [2]uint16
	if hasPorts(p.Proto) && len(rest) >= 4 {
		ports = [2]uint16{binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])}
	}
	p.From, p.To = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
	return true
}

func hasPorts(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return true
	}
	return false
}
