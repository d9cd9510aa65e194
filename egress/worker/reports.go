package worker

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/netfilter"
	"nemoclaw/specs/policy"
)

// Whatever a program sends but TCP and questions, the fence refuses by itself and
// reports (NFLOG): this is where it gets its name and its record.

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
			if p, ok := netfilter.ParsePacket(m.Header.Type, m.Data); ok {
				s.reportsLost(in.lost(p.Number))
				s.packetRefused(p)
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
	told := min(n, r.known) // what waited when there was no more room comes first
	r.begun, r.next, r.known = true, number+1, r.known-told
	return n - told
}

// packetRefused records a packet, by the name that its address stands for.
func (s *server) packetRefused(p netfilter.Packet) {
	r := control.Record{
		Verdict: control.Refuse, Proto: control.ProtoName(int(p.Proto)), Reason: string(policy.UnsupportedType),
		Detail: "only TCP passes, and questions to a name server", Src: p.From, Dst: p.To, Addr: p.To, Port: p.To.Port(),
		Host: p.To.Addr().String(),
	}
	if p.Proto == unix.IPPROTO_TCP {
		r.Detail = "only what is routed through the gateway passes"
	}
	if host, ok := s.pool.Name(p.To.Addr()); ok {
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
