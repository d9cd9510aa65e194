package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// fault is why a connection is refused, and the language to say it in.
type fault struct {
	reason policy.Reason
	detail string
	proto  string // "tcp", "tls", "http"
}

// sniff looks at what a refused program says, for a short while, to answer in
// its language and to know whom it meant.
func (f *flow) sniff() fault {
	ft := fault{reason: f.verdict.reason, proto: "tcp"}
	src, err := newSource(f.c)
	if err != nil {
		return ft
	}
	defer src.release()
	f.c.SetReadDeadline(time.Now().Add(sniffTime))
	defer f.c.SetReadDeadline(time.Time{})
	for {
		b, err := src.more(maxHead)
		if len(b) > 0 && ft.recognise(b) || err != nil {
			break
		}
	}
	if f.target.host != "" {
		ft.detail = "" // the name is known; the hint may be a lie
	}
	if f.why != "" {
		ft.detail = f.why
	}
	return ft
}

// recognise learns from first bytes, and tells whether more would add nothing.
func (ft *fault) recognise(b []byte) bool {
	if b[0] == recordHandshake {
		name, err := parseHello(b)
		if err == errNotTLS {
			return true
		}
		ft.proto = "tls"
		if name != "" {
			ft.detail = fmt.Sprintf("SNI %q", name)
		}
		return err != errMore
	}
	if !looksHTTP(b) {
		return true // whatever else it is, it gets a reset
	}
	ft.proto = "http"
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return false
	}
	if h, err := parseHead(b[:end+4]); err == nil && h.host != "" {
		ft.detail = fmt.Sprintf("Host %q", h.host)
	}
	return true
}

// refuse records a refusal and tells the program.
func (f *flow) refuse(ft fault) {
	f.mu.Lock()
	if f.cut != "" { // what looks like the program's fault was ours
		ft.reason, ft.detail = f.cut, ""
	}
	f.mu.Unlock()
	f.proto = ft.proto
	rec := f.record(control.Refuse, ft.reason, ft.detail)
	write := f.s.records.refuse
	if f.recorded { // what was told as allowed is taken back line by line
		write = f.s.records.write
	}
	if err := write(rec); err == errGone {
		reset(f.c)
		return
	}
	f.answer(ft)
}

// refuseAtOnce does it without asking, waiting or politeness.
func (f *flow) refuseAtOnce() {
	f.s.records.noteRefusal(f.record(control.Refuse, f.verdict.reason, f.why))
	f.unname()
	reset(f.c)
}

// answer tells the program in its language why there is no connection, and
// ends it.
func (f *flow) answer(ft fault) {
	switch ft.proto {
	case "http":
		status := http.StatusForbidden
		if ft.reason == policy.Malformed {
			status = http.StatusBadRequest
		}
		f.bye(f.response(status, string(ft.reason), ft.detail))
	case "tls":
		f.bye(alertAccessDenied)
	default:
		reset(f.c)
	}
}

// answerFailed does the same where the far end could not be reached.
func (f *flow) answerFailed(fail *failure) {
	if f.proto == "http" {
		f.bye(f.response(http.StatusBadGateway, "unreachable", fail.detail))
		return
	}
	reset(f.c)
}

// alertAccessDenied is a fatal TLS alert (RFC 8446, 6.2).
var alertAccessDenied = []byte{21, 3, 3, 0, 2, 2, 49}

// refusal is the body of an HTTP answer.
type refusal struct {
	Error   string `json:"error"`
	Host    string `json:"host"`
	Port    uint16 `json:"port"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail,omitempty"`
	Request string `json:"request"`
	Hint    string `json:"hint,omitempty"`
}

// response makes an HTTP answer.
func (f *flow) response(status int, reason, detail string) []byte {
	r := refusal{
		Error: "egress_denied", Host: f.target.name(), Port: f.target.port,
		Reason: reason, Detail: detail, Request: f.request,
	}
	switch policy.Reason(reason) {
	case policy.NotListed, policy.DirectAddress, policy.WrongProgram:
		r.Hint = fmt.Sprintf("an operator allows it with: nemoclawctl approve %s %s:%d", f.s.id, r.Host, r.Port)
	}
	if status == http.StatusBadGateway {
		r.Error = "egress_failed"
	}
	body, _ := json.Marshal(r)
	body = append(body, '\n')
	b := []byte("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) +
		"\r\nContent-Type: application/json\r\nX-Nemoclaw-Request: " + f.request +
		"\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n")
	return append(b, body...)
}

// bye says the last words. The program's own are read for a moment, because
// closing with some unread would reset the connection and lose ours.
func (f *flow) bye(words []byte) {
	f.c.SetDeadline(time.Now().Add(politeTime))
	if _, err := f.c.Write(words); err == nil {
		f.c.CloseWrite()
		io.Copy(io.Discard, io.LimitReader(f.c, 1<<20))
	}
	f.c.Close()
}
