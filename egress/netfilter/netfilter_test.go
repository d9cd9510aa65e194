package netfilter

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The end of a connection over IPv6 and a new flow of datagrams, as Linux 6.18
// told them.
var recorded = map[string]string{
	"end": "0a0000004c0001802c00018014000300fd31000100000000000000000000000114000400fd3100010000000000000000000000051c0002800500010006000000" +
		"06000200d7a6000006000300005000004c0002802c00018014000300fd31000100000000000000000000000514000400fd6e656d006f00010000000000000001" +
		"1c0002800500010006000000060002000050000006000300d7a6000008000c0048eb2559080003000000039e1c0009800c00010000000000000000040c000200" +
		"00000000000001281c000a800c00010000000000000000040c00020000000000000001521c0014800c00010018ea6d9f15087d880c00020018ea6d9f50a6a20a" +
		"100004800c00018005000100070000000800080000006e010c001b0018ea6da4852c223f",
	"new": "02000000340001801400018008000100ac1f010108000200ac1f01051c000280050001001100000006000200de68000006000300005000003400028014000180" +
		"08000100ac1f010508000200a9fe4d011c0002800500010011000000060002000050000006000300de68000008000c0040ae82f9080003000000019808000700" +
		"0000001e0800080000006e010c001b0018ea6d9deaf32587",
}

func record(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(recorded[name])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseFlow(t *testing.T) {
	f, err := parseFlow(record(t, "end"))
	if err != nil || f.Proto != unix.IPPROTO_TCP || f.From != netip.MustParseAddrPort("[fd31:1::1]:55206") || f.To != netip.MustParseAddrPort("[fd31:1::5]:80") ||
		f.State != TimeWait || !f.State.Done() || !f.Agreed() || !f.Answered() || f.Mark != 0x6e01 || f.In != (Count{4, 296}) || f.Out != (Count{4, 338}) ||
		f.Start.IsZero() || !f.Stop.After(f.Start) || f.ID == 0 {
		t.Errorf("the end of a connection: %+v, %v", f, err)
	}
	f, err = parseFlow(record(t, "new"))
	if err != nil || f.Proto != unix.IPPROTO_UDP || f.From != netip.MustParseAddrPort("172.31.1.1:56936") || f.To != netip.MustParseAddrPort("172.31.1.5:80") || f.Answered() || !f.Start.IsZero() {
		t.Errorf("a new flow: %+v, %v", f, err)
	}
	for name := range recorded {
		b := record(t, name)
		for n := range len(b) {
			if f, err := parseFlow(b[:n]); err == nil && (!f.From.IsValid() || !f.To.IsValid()) {
				t.Errorf("%s, cut at %d: %+v", name, n, f)
			}
		}
	}
}

// The request to forget a flow names it as the kernel does.
func TestFlowName(t *testing.T) {
	for name := range recorded {
		f, err := parseFlow(record(t, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.name()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseFlow(b)
		if err != nil || again.ID != f.ID || again.Proto != f.Proto || again.From != f.From || again.To != f.To || b[0] != record(t, name)[0] {
			t.Errorf("%s: named as %+v, %v", name, again, err)
		}
	}
}

// FuzzFlow: whatever comes, it is understood or refused; what is understood has
// two ends.
func FuzzFlow(f *testing.F) {
	for name := range recorded {
		f.Add(record(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if flow, err := parseFlow(b); err == nil && (!flow.From.IsValid() || !flow.To.IsValid()) {
			t.Errorf("%+v", flow)
		}
	})
}

// FuzzMessages: what is passed on lies in what came, one behind the other.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 17, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got int
		_ = messages(b, func(_ uint16, _ uint32, data []byte) error {
			if got += headerSize + len(data); got > len(b) {
				t.Errorf("%d bytes of %d", got, len(b))
			}
			return nil
		})
	})
}

// packet is the head of one of IP, as the kernel tells of it.
func packet(t testing.TB, number uint32, b []byte) []byte {
	t.Helper()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 1, Data: []byte{8, 0, 1, 0}}, // NFULA_PACKET_HDR
		{Type: logPayload, Data: b},
		{Type: logNumber, Data: binary.BigEndian.AppendUint32(nil, number)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(nfgen(7), attrs...)
}

var (
	syn4  = []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 203, 0, 113, 9, 172, 17, 0, 2, 0x1f, 0x90, 0, 80}
	udp6  = append(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, bytes.Repeat([]byte{0x20, 1}, 16)...), 0, 53, 0xff, 0xff)
	icmp4 = bytes.Replace(syn4, []byte{64, 6}, []byte{64, 1}, 1)
	later = bytes.Replace(syn4, []byte{0, 40, 0, 0, 0, 0}, []byte{0, 40, 0, 0, 0, 9}, 1) // a fragment
)

func TestParsePacket(t *testing.T) {
	for _, c := range []struct {
		packet   []byte
		proto    uint8
		from, to string
		ok       bool
	}{
		{syn4, 6, "203.0.113.9:8080", "172.17.0.2:80", true},
		{udp6, 17, "[2001:2001:2001:2001:2001:2001:2001:2001]:53", "[2001:2001:2001:2001:2001:2001:2001:2001]:65535", true},
		{icmp4, 1, "203.0.113.9:0", "172.17.0.2:0", true},
		{later, 6, "203.0.113.9:0", "172.17.0.2:0", true},
		{syn4[:23], 6, "203.0.113.9:0", "172.17.0.2:0", true},
		{append([]byte{0x4f}, syn4[1:]...), 6, "203.0.113.9:0", "172.17.0.2:0", true}, // a head longer than the packet
		{syn4[:19], 0, "", "", false},
		{udp6[:39], 0, "", "", false},
		{append([]byte{0x75}, syn4[1:]...), 0, "", "", false}, // of no version
		{nil, 0, "", "", false},
	} {
		p, ok := ParsePacket(msgLogPacket, packet(t, 12, c.packet))
		if ok != c.ok || ok && (p.Number != 12 || p.Proto != c.proto || p.From.String() != c.from || p.To.String() != c.to) {
			t.Errorf("% x: %+v, %v", c.packet, p, ok)
		}
		if _, ok := ParsePacket(msgFlowNew, packet(t, 12, c.packet)); ok {
			t.Error("another message passes for one")
		}
	}
}

// FuzzPacket: whatever a stranger's bytes are, they are understood or left out,
// and ports are those of protocols that have some.
func FuzzPacket(f *testing.F) {
	for _, b := range [][]byte{syn4, udp6, icmp4, later, {0x4f, 0}, {}} {
		f.Add(packet(f, 1, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := ParsePacket(msgLogPacket, b)
		if !ok {
			return
		}
		if !p.From.Addr().IsValid() || p.From.Addr().Is4() != p.To.Addr().Is4() {
			t.Errorf("%+v", p)
		}
		if (p.From.Port() != 0 || p.To.Port() != 0) && !hasPorts(p.Proto) {
			t.Errorf("%+v has ports", p)
		}
	})
}
