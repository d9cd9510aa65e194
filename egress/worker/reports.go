package worker

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// Whatever a program sends but TCP and questions, the fence refuses by itself and
// reports (NFLOG): this is where it gets its name and its record.

// report is what the kernel says of a refused packet.
type report struct {
	number   uint32 // rises by one
	proto    int    // of IP
	src, dst netip.AddrPort
}

// From linux/netfilter/nfnetlink_log.h.
const (
	reportType    = unix.NFNL_SUBSYS_ULOG << 8 // NFULNL_MSG_PACKET
	reportHeader  = 4                          // nfgenmsg
	reportPayload = 9                          // NFULA_PAYLOAD: from the header of IP on
	reportNumber  = 12                         // NFULA_SEQ
)

// maxReport is room for several reports, in bytes; the kernel hands over each by
// itself.
const maxReport = 4096

// hearReports records what is reported until f is closed.
func (s *server) hearReports(f *os.File) {
	var in reports
	b := make([]byte, maxReport)
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, unix.ENOBUFS): // netlink(7): there was no room for one at least
			s.reportsLost(in.overrun())
			continue
		case err != nil:
			return
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			continue
		}
		for _, m := range messages {
			if r, ok := parseReport(m); ok {
				s.reportsLost(in.lost(r.number))
				s.packetRefused(r)
			}
		}
	}
}

// reports counts those that were lost.
type reports struct {
	next  uint32 // number of the next one, if begun
	begun bool
	known uint32 // lost ones that were told of and whose number is not known yet
}

// overrun returns how many must have been lost by now.
func (r *reports) overrun() uint32 {
	r.known++
	return 1
}

// lost returns how many more were lost before number.
func (r *reports) lost(number uint32) uint32 {
	var n uint32
	if r.begun {
		n = number - r.next // it may begin again at 0
	}
	n -= min(n, r.known)
	r.begun, r.next, r.known = true, number+1, 0
	return n
}

func parseReport(m syscall.NetlinkMessage) (r report, ok bool) {
	if m.Header.Type != reportType || len(m.Data) < reportHeader {
		return r, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[reportHeader:])
	if err != nil {
		return r, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case reportNumber:
			r.number = ad.Uint32()
		case reportPayload:
			ok = r.parsePacket(ad.Bytes())
		}
	}
	return r, ok && ad.Err() == nil
}

// parsePacket reads the headers of a packet: RFC 791, 3.1; RFC 8200, 3. Ports are
// 0 where there are none, as in a later fragment, or behind extension headers,
// which take a capability to send.
func (r *report) parsePacket(b []byte) bool {
	var src, dst netip.Addr
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		r.proto = int(b[9])
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff; offset == 0 {
			rest = b[min(int(b[0]&15)*4, len(b)):]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		r.proto = int(b[6])
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		rest = b[40:]
	default:
		return false
	}
	var ports [2]uint16
	if hasPorts(r.proto) && len(rest) >= 4 {
		ports = [2]uint16{binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])}
	}
	r.src, r.dst = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
	return true
}

func hasPorts(proto int) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return true
	}
	return false
}

// packetRefused records a packet, by the name that its address stands for.
func (s *server) packetRefused(p report) {
	r := control.Record{
		Verdict: control.Refuse, Proto: control.ProtoName(p.proto), Reason: string(policy.UnsupportedType),
		Detail: "only TCP passes, and questions to a name server", Src: p.src, Dst: p.dst, Addr: p.dst, Port: p.dst.Port(),
		Host: p.dst.Addr().String(),
	}
	if p.proto == unix.IPPROTO_TCP {
		r.Detail = "only what is routed through the gateway passes"
	}
	if host, ok := s.pool.Name(p.dst.Addr()); ok {
		r.Host, r.Addr = host, netip.AddrPort{}
	}
	s.fenceRefused(r)
}

// reportsLost records that n packets more were refused of which nothing is known.
func (s *server) reportsLost(n uint32) {
	if n > 0 {
		s.fenceRefused(control.Record{
			Verdict: control.Refuse, Proto: "ip", Reason: string(policy.TooMany), Count: int(n),
			Detail: "packets that the fence refused faster than they could be told apart",
		})
	}
}

func (s *server) fenceRefused(r control.Record) {
	r.Rule, r.Generation = "built-in", s.rules.Load().generation
	r.Request = s.boot + "-" + strconv.FormatUint(s.serial.Add(1), 10)
	s.records.noteRefusal(r)
}
