package worker

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"nemoclaw/specs/policy"
)

// head is a request's first line and fields, as understood.
type head struct {
	method  string
	path    string // origin form, or "*"
	minor   byte   // of HTTP/1.x: '0' or '1'
	host    string // of the Host field, as it stands there
	fields  []field
	length  int64 // of the body in bytes; -1: chunked
	upgrade bool  // to a WebSocket
}

type field struct{ name, value string }

// badHead is why a head is not understood; its text is for people.
type badHead string

func (e badHead) Error() string { return string(e) }

// errNotHTTP says that the first bytes are of another protocol.
var errNotHTTP = errors.New("the first bytes are not HTTP/1")

// looksHTTP tells whether b could be the beginning of a request, a method in
// capitals and a space (RFC 9110, 9.1), or of a response.
func looksHTTP(b []byte) bool {
	if bytes.HasPrefix(b, []byte("HTTP/1.")) {
		return true
	}
	for i, c := range b {
		switch {
		case c == ' ' && i > 2:
			return true
		case 'A' <= c && c <= 'Z', c == '-' && i > 0:
		default:
			return false
		}
		if i > 24 {
			return false
		}
	}
	return len(b) > 0
}

// parseHead reads a head with its empty line. It takes what RFC 9112 calls
// valid and nothing else: lines end in CR LF, no field is folded, none that
// decides about the host or the length stands there twice.
func parseHead(b []byte) (*head, error) {
	lines := strings.Split(string(b), "\r\n")
	if len(lines) < 3 || lines[len(lines)-1] != "" || lines[len(lines)-2] != "" {
		return nil, badHead("the head does not end")
	}
	h := new(head)
	if err := h.parseLine(lines[0]); err != nil {
		return nil, err
	}
	hosts := 0
	seen := map[string]string{}
	for _, line := range lines[1 : len(lines)-2] {
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !isToken(name) || !isText(value) {
			return nil, badHead("a field is malformed")
		}
		switch key := strings.ToLower(name); key {
		case "host":
			h.host = value
			hosts++
			continue
		case "content-length", "transfer-encoding", "upgrade":
			if _, twice := seen[key]; twice {
				return nil, badHead(name + " stands there twice")
			}
			seen[key] = value
			if key != "upgrade" {
				continue // written anew
			}
		case "connection":
			if namesFraming(value) {
				return nil, badHead("Connection names a field that the next hop needs")
			}
		}
		h.fields = append(h.fields, field{name, value})
	}
	if hosts > 1 {
		return nil, badHead("Host stands there twice")
	}
	if err := h.body(seen); err != nil {
		return nil, err
	}
	if u, ok := seen["upgrade"]; ok {
		if !strings.EqualFold(u, "websocket") || h.method != "GET" || h.length != 0 {
			return nil, badHead("an upgrade to anything but a WebSocket")
		}
		h.upgrade = true
	}
	return h, h.absolute()
}

// namesFraming tells whether a Connection field asks the next hop to drop a
// field that decides where a request leads or ends.
func namesFraming(value string) bool {
	for option := range strings.SplitSeq(value, ",") {
		switch strings.ToLower(strings.Trim(option, " \t")) {
		case "host", "content-length", "transfer-encoding":
			return true
		}
	}
	return false
}

func (h *head) parseLine(line string) error {
	method, rest, _ := strings.Cut(line, " ")
	target, version, ok := strings.Cut(rest, " ")
	if !ok || !isToken(method) || !isTarget(target) {
		return badHead("the request line is malformed")
	}
	if method == "PRI" || len(version) != len("HTTP/1.1") || version[:7] != "HTTP/1." || version[7] != '0' && version[7] != '1' {
		return errNotHTTP
	}
	h.method, h.path, h.minor = method, target, version[7]
	return nil
}

// body learns how the body ends (RFC 9112, 6).
func (h *head) body(seen map[string]string) error {
	length, hasLength := seen["content-length"]
	coding, hasCoding := seen["transfer-encoding"]
	switch {
	case hasLength && hasCoding:
		return badHead("both Content-Length and Transfer-Encoding")
	case hasCoding && (h.minor == '0' || !strings.EqualFold(coding, "chunked")):
		return badHead("an unknown Transfer-Encoding")
	case hasCoding:
		h.length = -1
	case hasLength:
		if len(length) == 0 || len(length) > 18 || strings.Trim(length, "0123456789") != "" {
			return badHead("Content-Length is malformed")
		}
		h.length, _ = strconv.ParseInt(length, 10, 64)
	}
	return nil
}

// absolute turns the absolute form of a target, which clients of proxies
// write, into the origin form (RFC 9112, 3.2). Its authority must be what Host
// says.
func (h *head) absolute() error {
	switch {
	case h.method == "CONNECT":
		return badHead("CONNECT makes a tunnel")
	case h.path == "*" && h.method == "OPTIONS", h.path[0] == '/':
		return nil
	}
	rest, ok := cutPrefixFold(h.path, "http://")
	if !ok {
		return badHead("the request target is malformed")
	}
	authority, path := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, path = rest[:i], rest[i:]
		if path[0] == '?' {
			path = "/" + path
		}
	}
	if !strings.EqualFold(authority, h.host) {
		return badHead("the request target names another host than Host")
	}
	h.path = path
	return nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// appendTo writes the head anew, for the host at t.
func (h *head) appendTo(b []byte, t target) []byte {
	b = append(b, h.method...)
	b = append(b, ' ')
	b = append(b, h.path...)
	b = append(b, " HTTP/1."...)
	b = append(b, h.minor, '\r', '\n')
	b = appendField(b, "Host", h.authority(t))
	for _, f := range h.fields {
		b = appendField(b, f.name, f.value)
	}
	switch {
	case h.length < 0:
		b = appendField(b, "Transfer-Encoding", "chunked")
	case h.length > 0 || h.method == "POST" || h.method == "PUT" || h.method == "PATCH":
		b = appendField(b, "Content-Length", strconv.FormatInt(h.length, 10))
	}
	return append(b, "\r\n"...)
}

// authority is the Host to be written: the name that was looked up. Where only
// an address was, it is what the program says, which was checked to be a host.
func (h *head) authority(t target) string {
	if t.host == "" {
		return h.host
	}
	if t.port == 80 {
		return t.host
	}
	return t.host + ":" + strconv.Itoa(int(t.port))
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// isToken tells whether s is a token (RFC 9110, 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// isTarget tells whether s can stand between the spaces of a request line.
func isTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '#' {
			return false
		}
	}
	return s != ""
}

// isText tells whether s is a field's value (RFC 9110, 5.5).
func isText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// compareHost compares a Host field with where the connection leads.
func (t target) compareHost(h *head) *fault {
	if h.host == "" {
		return &fault{reason: policy.NoName, proto: "http", detail: "the request has no Host"}
	}
	mismatch := &fault{reason: policy.NameMismatch, proto: "http", detail: "Host " + strconv.Quote(h.host)}
	host, port := splitPort(h.host)
	if port != "" && port != strconv.Itoa(int(t.port)) {
		return mismatch
	}
	if t.host == "" { // a rule that names an address allows what is served there
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return nil
		}
		if _, err := policy.NormalHost(host); err == nil {
			return nil
		}
		return mismatch
	}
	if name, err := policy.NormalHost(host); err != nil || name != t.host {
		return mismatch
	}
	return nil
}

// splitPort takes the port off a Host field; "" where there is none.
func splitPort(s string) (host, port string) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// readHead reads the next request's head from br and checks it. A fault
// without a reason is the end of the connection between two requests.
func (f *flow) readHead(br *bufio.Reader) (*head, *fault) {
	b, err := readBlock(br)
	if err != nil {
		switch {
		case len(b) == 0:
			return nil, &fault{reason: policy.NotHTTP, proto: "tcp", detail: "it ended before a request"}
		case !looksHTTP(b):
			return nil, &fault{reason: policy.NotHTTP, proto: "tcp"}
		}
		return nil, &fault{reason: policy.Malformed, proto: "http", detail: err.Error()}
	}
	h, err := parseHead(b)
	switch {
	case err == errNotHTTP || err != nil && !looksHTTP(b):
		return nil, &fault{reason: policy.NotHTTP, proto: "tcp"}
	case err != nil:
		return nil, &fault{reason: policy.Malformed, proto: "http", detail: err.Error()}
	}
	if ft := f.target.compareHost(h); ft != nil {
		return nil, ft
	}
	return h, nil
}

// Why a block of lines is not one.
const (
	errLongHead = badHead("the head is longer than 64 KiB")
	errBareLF   = badHead("a line ends without CR")
)

// readBlock reads lines up to an empty one, which is included, and skips empty
// lines before the first (RFC 9112, 2.2). With an error it returns what it
// has. It gives up at the first line that is not one of HTTP.
func readBlock(br *bufio.Reader) ([]byte, error) {
	if _, err := br.Peek(1); err != nil {
		return nil, err
	}
	first, _ := br.Peek(br.Buffered())
	if !looksHTTP(first) && first[0] != '\r' {
		return first, errNotHTTP // its end of line might never come
	}
	b := make([]byte, 0, len(first))
	for read := 0; ; {
		line, err := br.ReadSlice('\n')
		b = append(b, line...)
		read += len(line)
		switch {
		case read > maxHead:
			return b, errLongHead
		case len(b) > 0 && !looksHTTP(b) && b[0] != '\r':
			return b, errNotHTTP
		case err == bufio.ErrBufferFull:
			continue
		case err != nil:
			return b, err
		case len(b) < 2 || b[len(b)-2] != '\r':
			return b, errBareLF
		case len(b) == 2: // only "\r\n" so far
			b = b[:0]
		case bytes.HasSuffix(b, []byte("\r\n\r\n")):
			return b, nil
		}
	}
}

// relayHTTP passes requests as they are understood, and answers as they come.
func (f *flow) relayHTTP(br *bufio.Reader, h *head) {
	back, err := newSource(f.up)
	if err != nil {
		f.abort()
		return
	}
	if err := f.writeHead(h); err != nil {
		f.abort()
		return
	}
	switched := false
	if h.upgrade {
		if switched, err = f.awaitSwitch(back); err != nil {
			f.abort()
			return
		}
	}
	done := make(chan struct{})
	f.s.wg.Go(func() {
		defer close(done)
		f.got += f.pass(f.c, back)
	})
	var ft *fault
	if switched {
		f.passSwitched(br)
	} else {
		ft = f.passRequests(br, h)
	}
	if ft != nil {
		f.refuseNext(ft, done)
	} else {
		f.linger(done)
	}
}

// passRequests passes the body of h, then request after request, until the
// program has said all. It returns why the next one is refused.
func (f *flow) passRequests(br *bufio.Reader, h *head) *fault {
	for {
		if ft, more := f.writeBody(br, h); !more {
			return ft
		}
		if _, err := br.Peek(1); err != nil {
			f.ended(f.up, f.c, err)
			return nil
		}
		var ft *fault
		if h, ft = f.readHead(br); ft != nil {
			if isReset(f.c) {
				f.abort()
				return nil
			}
			return ft
		}
		if h.upgrade {
			return &fault{reason: policy.Malformed, proto: "http", detail: "an upgrade after another request"}
		}
		if err := f.writeHead(h); err != nil {
			f.ended(f.up, f.c, err)
			return nil
		}
	}
}

func (f *flow) writeHead(h *head) error {
	room := buffers.Get().(*[copySize]byte)
	defer buffers.Put(room)
	_, err := f.way(f.up).Write(h.appendTo(room[:0], f.target))
	return err
}

// writeBody passes a request's body, and tells whether another request may
// follow. If not, the fault says what is wrong with the body; nil: one of the
// ends went away.
func (f *flow) writeBody(br *bufio.Reader, h *head) (*fault, bool) {
	if h.length >= 0 {
		err := f.writeLength(br, h.length)
		if err != nil {
			f.ended(f.up, f.c, err)
		}
		return nil, err == nil
	}
	w := httputil.NewChunkedWriter(f.way(f.up))
	_, err := io.Copy(w, httputil.NewChunkedReader(br))
	if err == nil {
		err = skipTrailer(br)
	}
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		f.ended(f.up, f.c, err)
		return nil, false
	case errors.Is(err, io.ErrUnexpectedEOF):
		f.ended(f.up, f.c, io.EOF)
		return nil, false
	case err != nil:
		return &fault{reason: policy.Malformed, proto: "http", detail: "the chunked body is malformed"}, false
	}
	if _, err := io.WriteString(f.way(f.up), "0\r\n\r\n"); err != nil {
		f.ended(f.up, f.c, err)
		return nil, false
	}
	return nil, true
}

// writeLength passes a body of n bytes: what br holds of it, then the rest
// straight from the connection.
func (f *flow) writeLength(br *bufio.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	held, _ := br.Peek(int(min(n, int64(br.Buffered()))))
	m, err := f.way(f.up).Write(held)
	br.Discard(m)
	if rest := n - int64(len(held)); err == nil && rest > 0 {
		_, err = io.CopyN(f.way(f.up), f.c, rest)
	}
	return err
}

// skipTrailer reads the fields behind a chunked body and drops them: a server
// might take one for a field of the head.
func skipTrailer(br *bufio.Reader) error {
	for n := 0; n < maxHead; {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return err
		}
		if string(line) == "\r\n" {
			return nil
		}
		n += len(line)
	}
	return errLongHead
}

// awaitSwitch passes the answer's head, and tells whether the server agreed to
// the upgrade.
func (f *flow) awaitSwitch(back *source) (bool, error) {
	br := bufio.NewReaderSize(f.up, 4096)
	for {
		b, err := readBlock(br)
		if err != nil {
			return false, err
		}
		n, err := f.c.Write(b)
		f.got += int64(n)
		if err != nil {
			return false, err
		}
		status := ""
		if len(b) >= 12 {
			status = string(b[9:12])
		}
		if status == "101" || !strings.HasPrefix(status, "1") {
			rest, _ := br.Peek(br.Buffered())
			n, err := f.c.Write(rest)
			f.got += int64(n)
			return status == "101", err
		}
	}
}

// passSwitched passes what is no longer HTTP.
func (f *flow) passSwitched(br *bufio.Reader) {
	rest, _ := br.Peek(br.Buffered())
	_, err := f.way(f.up).Write(rest)
	src, serr := newSource(f.c)
	if err != nil || serr != nil {
		f.abort()
		return
	}
	f.pass(f.up, src)
}

// refuseNext lets the server finish what it owes, then refuses the request
// that follows and ends the connection.
func (f *flow) refuseNext(ft *fault, done <-chan struct{}) {
	f.mu.Lock()
	if f.cut == "" {
		f.cut, f.detail = ft.reason, ft.detail
	}
	f.mu.Unlock()
	f.last.Store(true)
	f.up.CloseWrite()
	timer := time.AfterFunc(drainTime, f.abort)
	<-done
	timer.Stop()
	ft.proto = "http"
	f.answer(*ft)
}
