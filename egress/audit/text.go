package audit

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Every connection waits for its line. A Network is therefore written down here
// field by field, by what encoding/json would make of it to the byte: a test
// compares the two. Every other entry is encoding/json's.

// text appends to b the JSON of an entry, in printable ASCII.
func text(b []byte, e Entry) ([]byte, error) {
	if n, ok := e.(*Network); ok {
		return n.text(b), nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("cannot record: %w", err)
	}
	return ascii(b, line), nil
}

func (n *Network) text(b []byte) []byte {
	b = n.Base.text(b)
	b = number(b, `,"action_id":`, n.ActionID)
	b = number(b, `,"disposition_id":`, n.DispositionID)
	if n.Actor != nil {
		b = n.Actor.text(append(b, `,"actor":{`...))
	}
	b = n.Src.text(b, `,"src_endpoint":{`)
	b = n.Dst.text(b, `,"dst_endpoint":{`)
	if c := n.Connection; c != nil {
		b = quoted(b, `,"connection_info":{"protocol_name":`, c.ProtocolName)
		b = number(b, `,"protocol_num":`, c.ProtocolNum)
		b = append(number(b, `,"direction_id":`, c.DirectionID), '}')
	}
	if n.Rule != nil {
		b = append(quoted(b, `,"firewall_rule":{"name":`, n.Rule.Name), '}')
	}
	if t := n.Traffic; t != nil {
		b = number(b, `,"traffic":{"bytes_in":`, t.In)
		b = number(b, `,"bytes_out":`, t.Out)
		if t.PacketsIn != 0 {
			b = number(b, `,"packets_in":`, t.PacketsIn)
		}
		if t.PacketsOut != 0 {
			b = number(b, `,"packets_out":`, t.PacketsOut)
		}
		b = append(b, '}')
	}
	if n.StartTime != 0 {
		b = number(b, `,"start_time":`, n.StartTime)
	}
	if n.Duration != 0 {
		b = number(b, `,"duration":`, n.Duration)
	}
	if n.Count != 0 {
		b = number(b, `,"count":`, n.Count)
	}
	return append(n.Unmapped.text(append(b, `,"unmapped":`...)), '}')
}

func (b *Base) text(to []byte) []byte {
	to = number(to, `{"class_uid":`, b.ClassUID)
	to = number(to, `,"category_uid":`, b.CategoryUID)
	to = number(to, `,"activity_id":`, b.ActivityID)
	to = number(to, `,"type_uid":`, b.TypeUID)
	to = number(to, `,"time":`, b.Time)
	to = number(to, `,"severity_id":`, b.SeverityID)
	to = number(to, `,"status_id":`, b.StatusID)
	to = maybe(to, `,"message":`, b.Message)
	to = quoted(to, `,"metadata":{"version":`, b.Metadata.Version)
	to = quoted(to, `,"product":{"name":`, b.Metadata.Product.Name)
	to = quoted(to, `,"vendor_name":`, b.Metadata.Product.Vendor)
	to = maybe(append(to, '}'), `,"uid":`, b.Metadata.UID)
	to = strconv.AppendUint(append(to, `,"sequence":`...), b.Metadata.Sequence, 10)
	for i, p := range b.Metadata.Profiles {
		before := `,`
		if i == 0 {
			before = `,"profiles":[`
		}
		to = quoted(to, before, p)
	}
	if len(b.Metadata.Profiles) > 0 {
		to = append(to, ']')
	}
	to = number(to, `},"device":{"type_id":`, b.Device.TypeID)
	to = quoted(to, `,"type":`, b.Device.Type)
	return append(quoted(to, `,"uid":`, b.Device.UID), '}')
}

func (a *Actor) text(b []byte) []byte {
	first := len(b)
	b = maybe(b, `,"app_name":`, a.AppName)
	if !a.Process.IsZero() {
		b = a.Process.text(append(b, `,"process":`...))
	}
	return append(withoutComma(b, first), '}')
}

// withoutComma takes away the comma before the first field of an object, which
// begins at an offset.
func withoutComma(b []byte, first int) []byte {
	if len(b) > first {
		return append(b[:first], b[first+1:]...)
	}
	return b
}

func (p *Process) text(b []byte) []byte {
	b = number(b, `{"pid":`, p.PID)
	b = maybe(b, `,"name":`, p.Name)
	if p.File != nil {
		b = quoted(b, `,"file":{"name":`, p.File.Name)
		b = quoted(b, `,"path":`, p.File.Path)
		b = append(number(b, `,"type_id":`, p.File.TypeID), '}')
	}
	if p.User != nil {
		b = append(quoted(b, `,"user":{"uid":`, p.User.UID), '}')
	}
	if p.Container != nil {
		b = append(quoted(b, `,"container":{"uid":`, p.Container.UID), '}')
	}
	for i, a := range p.Ancestry {
		before := `,{"path":`
		if i == 0 {
			before = `,"ancestry":[{"path":`
		}
		b = append(quoted(b, before, a.Path), '}')
	}
	if len(p.Ancestry) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

func (e *Endpoint) text(b []byte, before string) []byte {
	if e == nil {
		return b
	}
	b = append(b, before...)
	first := len(b)
	b = maybe(b, `,"hostname":`, e.Hostname)
	b = maybe(b, `,"ip":`, e.IP)
	if e.Port != 0 {
		b = number(b, `,"port":`, int(e.Port))
	}
	b = maybe(b, `,"svc_name":`, e.SvcName)
	b = maybe(b, `,"uid":`, e.UID)
	return append(withoutComma(b, first), '}')
}

func (m *NetworkMore) text(b []byte) []byte {
	b = quoted(b, `{"prev":`, m.Prev)
	b = quoted(b, `,"verdict":`, m.Verdict)
	b = maybe(b, `,"reason":`, m.Reason)
	b = maybe(b, `,"would":`, m.Would)
	b = maybe(b, `,"detail":`, m.Detail)
	b = maybe(b, `,"method":`, m.Method)
	b = strconv.AppendUint(append(b, `,"generation":`...), m.Generation, 10)
	b = maybe(b, `,"unsure":`, m.Unsure)
	return append(b, '}')
}

func number[N int | int64](b []byte, before string, n N) []byte {
	return strconv.AppendInt(append(b, before...), int64(n), 10)
}

// maybe leaves an empty text out, with what would stand before it.
func maybe(b []byte, before, s string) []byte {
	if s == "" {
		return b
	}
	return quoted(b, before, s)
}

// quoted appends a JSON string of printable ASCII.
func quoted(b []byte, before, s string) []byte {
	b = append(append(b, before...), '"')
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return strange(b, s)
		}
	}
	return append(append(b, s...), '"')
}

// strange ends a string that needs escaping as encoding/json would.
func strange(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil { // a string can always be
		quoted = []byte(`""`)
	}
	return ascii(b, quoted[1:])
}

// ascii appends a JSON text with every rune escaped that is not printable ASCII.
// Outside of strings JSON has none, so the text keeps its meaning.
func ascii(dst, src []byte) []byte {
	for len(src) > 0 {
		c, n := utf8.DecodeRune(src)
		src = src[n:]
		switch {
		case c >= 0x20 && c < 0x7f:
			dst = append(dst, byte(c))
		case c > 0xffff:
			hi, lo := utf16.EncodeRune(c)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, hi, lo)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, c)
		}
	}
	return dst
}
