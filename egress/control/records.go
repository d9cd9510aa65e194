package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Records and the answers to them come with every connection, and every
// connection waits for them: they alone are not JSON but begin with a byte that
// no JSON does. Numbers are varints, texts have their length before them.
const (
	markRecords = 1
	markWritten = 2
	markLarge   = 3 // the next packet is larger than a reader expects: by four bytes, how large
)

// MaxRecords is how many records one message holds at the most.
const MaxRecords = 1024

// errShort says that a message ends too early.
var errShort = errors.New("it is cut off")

func (r *Records) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(append(b, markRecords), r.N)
	b = binary.AppendUvarint(b, uint64(len(r.List)))
	for i := range r.List {
		b = r.List[i].appendTo(b)
	}
	return b
}

func (r *Record) appendTo(b []byte) []byte {
	for _, s := range []string{string(r.Verdict), r.Proto, r.Host, r.Reason, r.Detail, r.Rule, r.Request, r.Method, r.Would} {
		b = appendText(b, s)
	}
	b = binary.BigEndian.AppendUint16(b, r.Port)
	for _, a := range []netip.AddrPort{r.Addr, r.Src, r.Dst} {
		b = appendAddr(b, a)
	}
	b = binary.AppendUvarint(b, r.Generation)
	for _, n := range []int64{r.Sent, r.Got, int64(r.Lasted), int64(r.Count)} {
		b = binary.AppendVarint(b, n)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendAddr drops the zone of an address: none of ours has one.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, 0)
	}
	ip := a.Addr().AsSlice()
	b = append(append(b, byte(len(ip))), ip...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// parse reads what appendTo wrote. What comes a second time, as most texts do,
// is not kept a second time.
func (r *Records) parse(b []byte) error {
	p := parser{b: b[1:]}
	r.N = p.uint()
	n := p.uint()
	if n > MaxRecords {
		return fmt.Errorf("%d records are more than %d", n, MaxRecords)
	}
	r.List = make([]Record, n)
	before := new(Record)
	for i := range r.List {
		r.List[i].parse(&p, before)
		before = &r.List[i]
	}
	if p.err == nil && len(p.b) > 0 {
		return fmt.Errorf("%d bytes follow it", len(p.b))
	}
	return p.err
}

func (r *Record) parse(p *parser, before *Record) {
	r.Verdict = Verdict(p.text(string(before.Verdict)))
	r.Proto = p.text(before.Proto)
	r.Host = p.text(before.Host)
	r.Reason = p.text(before.Reason)
	r.Detail = p.text(before.Detail)
	r.Rule = p.text(before.Rule)
	r.Request = p.text(before.Request)
	r.Method = p.text(before.Method)
	r.Would = p.text(before.Would)
	r.Port = p.port()
	r.Addr, r.Src, r.Dst = p.addr(), p.addr(), p.addr()
	r.Generation = p.uint()
	r.Sent, r.Got, r.Lasted = p.int(), p.int(), time.Duration(p.int())
	r.Count = int(p.int())
}

func (w *Written) appendTo(b []byte) []byte {
	return append(binary.AppendUvarint(append(b, markWritten), w.N), w.Fault...)
}

func (w *Written) parse(b []byte) error {
	p := parser{b: b[1:]}
	w.N = p.uint()
	w.Fault = string(p.b)
	return p.err
}

// parser takes a message apart. After its first error all that it returns is
// zero.
type parser struct {
	b   []byte
	err error
}

func (p *parser) fail() {
	p.b, p.err = nil, errShort
}

func (p *parser) take(n int) []byte {
	if n > len(p.b) {
		p.fail()
		return nil
	}
	taken := p.b[:n]
	p.b = p.b[n:]
	return taken
}

func (p *parser) uint() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		p.fail()
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) int() int64 {
	v, n := binary.Varint(p.b)
	if n <= 0 {
		p.fail()
		return 0
	}
	p.b = p.b[n:]
	return v
}

// text returns the next text: known itself, if it is that again.
func (p *parser) text(known string) string {
	n := p.uint()
	if n > uint64(len(p.b)) {
		p.fail()
		return ""
	}
	if b := p.take(int(n)); string(b) != known {
		return string(b)
	}
	return known
}

func (p *parser) port() uint16 {
	b := p.take(2)
	if len(b) == 0 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func (p *parser) addr() netip.AddrPort {
	length := p.take(1)
	if len(length) == 0 || length[0] == 0 {
		return netip.AddrPort{}
	}
	a, ok := netip.AddrFromSlice(p.take(int(length[0])))
	if !ok {
		p.fail()
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, p.port())
}
