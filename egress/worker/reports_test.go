package worker

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/mdlayher/netlink"
	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/policy"
)

// packet is one of IP as the kernel reports it: its headers.
func packet(proto byte, src, dst string) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	var b []byte
	if to.Addr().Is4() {
		b = make([]byte, 20)
		b[0], b[9] = 0x45, proto
		copy(b[12:], from.Addr().AsSlice())
		copy(b[16:], to.Addr().AsSlice())
	} else {
		b = make([]byte, 40)
		b[0], b[6] = 0x60, proto
		copy(b[8:], from.Addr().AsSlice())
		copy(b[24:], to.Addr().AsSlice())
	}
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, to.Port())
}

// reportOf is the kernel's message about a packet (linux/netfilter/
// nfnetlink_log.h).
func reportOf(t testing.TB, number uint32, packet []byte) []byte {
	t.Helper()
	const (
		reportType    = unix.NFNL_SUBSYS_ULOG << 8 // NFULNL_MSG_PACKET
		reportHeader  = 4                          // nfgenmsg
		reportPayload = 9                          // NFULA_PAYLOAD
		reportNumber  = 12                         // NFULA_SEQ
	)
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 1, Data: []byte{8, 0, 1, 0}}, // NFULA_PACKET_HDR
		{Type: reportPayload, Data: packet},
		{Type: reportNumber, Data: binary.BigEndian.AppendUint32(nil, number)},
	})
	check(t, err)
	b := make([]byte, syscall.NLMSG_HDRLEN+reportHeader)
	binary.NativeEndian.PutUint32(b, uint32(len(b)+len(attrs)))
	binary.NativeEndian.PutUint16(b[4:], reportType)
	return append(b, attrs...)
}

// What the fence refused is recorded by the name that its address stands for,
// with where it came from, and what was lost by its number.
func TestRefusedPackets(t *testing.T) {
	sb := newSandbox(t, postgres)
	stands := netip.AddrPortFrom(sb.lookup("files.example.org"), 443)
	kernel, err := net.Dial("udp4", sb.reports.String())
	check(t, err)
	defer kernel.Close()
	for _, c := range []struct {
		number   uint32
		packet   []byte
		proto    string
		host     string
		src, dst string
		lost     int // before it
	}{
		{7, packet(17, "198.18.0.2:5000", stands.String()), "udp", "files.example.org", "198.18.0.2:5000", stands.String(), 0},
		{8, packet(17, "198.18.0.2:5000", "203.0.113.9:53000"), "udp", "203.0.113.9", "198.18.0.2:5000", "203.0.113.9:53000", 0},
		{11, packet(17, "[fd00::1]:5000", "[2001:db8::9]:443"), "udp", "2001:db8::9", "[fd00::1]:5000", "[2001:db8::9]:443", 2},
		{12, packet(1, "198.18.0.2:2048", "8.8.8.8:77"), "icmp", "8.8.8.8", "198.18.0.2:0", "8.8.8.8:0", 0},
		{13, packet(132, "198.18.0.2:5000", "8.8.8.8:77"), "sctp", "8.8.8.8", "198.18.0.2:5000", "8.8.8.8:77", 0},
		{14, packet(200, "198.18.0.2:5000", "8.8.8.8:77"), "ip-200", "8.8.8.8", "198.18.0.2:0", "8.8.8.8:0", 0},
	} {
		_, err := kernel.Write(reportOf(t, c.number, c.packet))
		check(t, err)
		r := sb.record()
		if c.lost > 0 {
			if r.Proto != "ip" || r.Count != c.lost || r.Reason != string(policy.TooMany) {
				t.Errorf("before number %d: %+v, want %d lost", c.number, r, c.lost)
			}
			r = sb.record()
		}
		if r.Proto != c.proto || r.Host != c.host || r.Src.String() != c.src || r.Dst.String() != c.dst || r.Verdict != "refuse" || r.Reason != string(policy.UnsupportedType) {
			t.Errorf("number %d: %+v, want %s from %s to %s (%s)", c.number, r, c.proto, c.src, c.host, c.dst)
		}
	}
}

// The lost are counted once, whether the kernel told of them at once or only the
// next number does.
func TestLostReports(t *testing.T) {
	var r reports
	for i, c := range []struct {
		number  uint32
		overrun bool
		want    uint32
	}{
		{number: 4000000000}, // by a worker before this one
		{number: 4000000001},
		{overrun: true, want: 1},
		{number: 4000000012, want: 9}, // ten in all
		{number: ^uint32(0), want: ^uint32(0) - 4000000013},
		{number: 2, want: 2}, // it begins again at 0
		{overrun: true, want: 1},
		{overrun: true, want: 1},
		{number: 5, want: 0},
		{number: 7, want: 1},
		{overrun: true, want: 1}, // what waited then is read first
		{number: 8},
		{number: 9},
		{number: 15, want: 4},
	} {
		got := uint32(0)
		if c.overrun {
			got = r.overrun()
		} else {
			got = r.lost(c.number)
		}
		if got != c.want {
			t.Errorf("step %d: %d are lost, want %d", i, got, c.want)
		}
	}
}

// A question that is refused is answered once its record is written: until then
// whoever asked waits, and can be found.
func TestRefusedQuestionsWait(t *testing.T) {
	sb := newSandbox(t, postgres)
	held := make(chan struct{})
	sb.set(func() { sb.held = held })
	answered := make(chan *wire.Msg, 1)
	go func() {
		q := new(wire.Msg)
		q.SetQuestion("printer.corp.example.", wire.TypeA)
		m, err := wire.Exchange(q, sb.udp.String())
		if err != nil {
			t.Error(err)
		}
		answered <- m
	}()
	r := sb.record()
	if r.Proto != "dns" || r.Reason != string(policy.SearchDomain) || !r.Src.IsValid() || r.Dst.IsValid() {
		t.Errorf("the record is %+v", r)
	}
	for range 20 { // time enough for an answer
		sb.lookup("db.example.com")
	}
	if len(answered) > 0 {
		t.Error("it was answered before its record was written")
	}
	close(held)
	if m := <-answered; m == nil || m.Rcode != wire.RcodeNameError {
		t.Errorf("the answer is %v", m)
	}
}
