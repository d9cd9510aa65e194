package worker

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"nemoclaw/specs/policy"
)

// helloFor returns the first flight of Go's TLS client for a name.
func helloFor(name string) []byte {
	return firstFlight(&tls.Config{ServerName: name, InsecureSkipVerify: true})
}

func firstFlight(config *tls.Config) []byte {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go tls.Client(client, config).Handshake()
	header := make([]byte, recordHeader)
	io.ReadFull(server, header)
	body := make([]byte, int(header[3])<<8|int(header[4]))
	io.ReadFull(server, body)
	return append(header, body...)
}

// helloWithin is the first flight of a client that encrypts the name it means to
// a server whose public name is another (draft-ietf-tls-esni, version 0xfe0d).
func helloWithin(t *testing.T, public, meant string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	check(t, err)
	contents := slices.Concat([]byte{7, 0, 0x20, 0, 32}, key.PublicKey().Bytes(), // X25519
		[]byte{0, 4, 0, 1, 0, 1, 64, byte(len(public))}, []byte(public), []byte{0, 0}) // HKDF-SHA256, AES-128-GCM
	config := slices.Concat([]byte{0, byte(len(contents) + 4), 0xfe, 0x0d, 0, byte(len(contents))}, contents)
	hello := firstFlight(&tls.Config{ServerName: meant, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: config, InsecureSkipVerify: true})
	if bytes.Contains(hello, []byte(meant)) && meant != public {
		t.Fatalf("%s stands in the hello for all to read", meant)
	}
	return hello
}

// resplit spreads the first flight over records of n bytes each.
func resplit(hello []byte, n int) []byte {
	var out []byte
	for b := hello[recordHeader:]; len(b) > 0; {
		k := min(n, len(b))
		out = append(out, recordHandshake, 3, 1, byte(k>>8), byte(k))
		out = append(out, b[:k]...)
		b = b[k:]
	}
	return out
}

func TestParseHello(t *testing.T) {
	hello := helloFor("api.example.com")
	if len(hello) < 1400 {
		t.Errorf("Go's ClientHello is %d bytes: it offers no post-quantum key any more", len(hello))
	}
	for _, tc := range []struct {
		name string
		in   []byte
		sni  string
		err  error
	}{
		{"whole", hello, "api.example.com", nil},
		{"in records of one byte", resplit(hello, 1), "api.example.com", nil},
		{"in records of 100 bytes", resplit(hello, 100), "api.example.com", nil},
		{"with what follows", append(bytes.Clone(hello), "more"...), "api.example.com", nil},
		{"without a name", helloFor(""), "", nil},
		{"nothing yet", nil, "", errMore},
		{"one byte", hello[:1], "", errMore},
		{"half", hello[:len(hello)/2], "", errMore},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), "", errNotTLS},
		{"an alert", []byte{21, 3, 3, 0, 2, 2, 49}, "", errNotTLS},
		{"SSH behind a byte", []byte{22, 'S', 'S', 'H'}, "", errNotTLS},
		{"an empty record", []byte{22, 3, 1, 0, 0}, "", errBadHello},
		{"a record too long", []byte{22, 3, 1, 0x40, 1}, "", errBadHello},
		{"a ServerHello", []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, "", errBadHello},
		{"longer than we read", []byte{22, 3, 1, 0, 4, 1, 2, 0, 0}, "", errBadHello},
		{"an alert between the records", append(resplit(hello, 100)[:105], 21, 3, 3, 0, 2, 2, 49), "", errBadHello},
		{"two names", withNames(hello, "api.example.com", "evil.example"), "", errBadHello},
		{"the extension twice", withTwice(hello), "", errBadHello},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sni, err := parseHello(tc.in)
			if sni != tc.sni || err != tc.err {
				t.Errorf("%q, %v; want %q, %v", sni, err, tc.sni, tc.err)
			}
		})
	}
}

// helloWith makes a small ClientHello with these extensions.
func helloWith(extensions []byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0)           // no session
	body = append(body, 0, 2, 19, 1) // TLS_AES_128_GCM_SHA256
	body = append(body, 1, 0)        // no compression
	body = append(body, byte(len(extensions)>>8), byte(len(extensions)))
	body = append(body, extensions...)
	n := len(body)
	message := append([]byte{clientHello, 0, byte(n >> 8), byte(n)}, body...)
	n = len(message)
	return append([]byte{recordHandshake, 3, 1, byte(n >> 8), byte(n)}, message...)
}

func serverNameExtension(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0, byte(len(n)>>8), byte(len(n)))
		list = append(list, n...)
	}
	n := len(list)
	return append([]byte{0, 0, byte((n + 2) >> 8), byte(n + 2), byte(n >> 8), byte(n)}, list...)
}

func withNames(_ []byte, names ...string) []byte { return helloWith(serverNameExtension(names...)) }

func withTwice(_ []byte) []byte {
	return helloWith(append(serverNameExtension("api.example.com"), serverNameExtension("evil.example")...))
}

// FuzzParseHello holds the parser against crypto/tls: whatever Go's server
// understands as a ClientHello for a name, we understand as one for the same
// name, or refuse. Two who differ about the name would be a hole.
func FuzzParseHello(f *testing.F) {
	hello := helloFor("api.example.com")
	f.Add(hello)
	f.Add(resplit(hello, 1))
	f.Add(resplit(hello, 64))
	f.Add(helloFor(""))
	f.Add(withNames(nil, "a.example", "b.example"))
	f.Add(withTwice(nil))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	warned := append([]byte{21, 3, 1, 0, 2, 1, 90}, hello...)
	if _, understood := goReads(warned); !understood {
		f.Error("crypto/tls does not skip a warning any more")
	}
	f.Add(warned)
	f.Fuzz(func(t *testing.T, b []byte) {
		sni, err := parseHello(b)
		for i := range min(len(b), 300) { // what is known does not change as more comes
			if s, e := parseHello(b[:i]); e == nil && (err != nil || s != sni) || (e == errNotTLS && err != errNotTLS) {
				t.Fatalf("%d bytes are %q, %v; %d bytes are %q, %v", i, s, e, len(b), sni, err)
			}
		}
		theirs, understood := goReads(b)
		if understood && err == nil && theirs != sni {
			t.Fatalf("crypto/tls reads %q, we read %q", theirs, sni)
		}
		if stray, _ := strayRecord(b); understood && err == errNotTLS && !stray {
			t.Fatalf("crypto/tls reads a ClientHello for %q, we see no TLS", theirs)
		}
	})
}

// goReads returns the name that a server of crypto/tls would see.
func goReads(b []byte) (name string, ok bool) {
	stop := errors.New("enough")
	c := &script{in: bytes.NewReader(b)}
	tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, stop
	}}).HandshakeContext(context.Background())
	return name, ok
}

// script is a connection that says what is written and hears nothing.
type script struct {
	net.Conn
	in io.Reader
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return len(b), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// Only TLS for the name that was looked up passes port 443; elsewhere a
// ClientHello need not come, but must not name another host.
func TestScreenHello(t *testing.T) {
	const rules = `egress:
  rules:
    - host: api.example.com
      ports: [443, 8443]
    - host: raw.example.com
      port: 443
      raw: true
    - cidr: 93.184.216.34/32
      port: 443
`
	const warning = "\x15\x03\x01\x00\x02\x01\x5a"
	hello := func(name string) string { return string(helloFor(name)) }
	for _, tc := range []struct {
		name   string
		host   string
		port   uint16
		send   string
		passes bool
		record string // the last
	}{
		{"the name", "api.example.com", 443, hello("api.example.com"), true, "end tls api.example.com:443"},
		{"the name in capitals", "api.example.com", 443, hello("API.Example.com"), true, "end tls api.example.com:443"},
		{"in many records", "api.example.com", 443, string(resplit(helloFor("api.example.com"), 7)), true, "end tls api.example.com:443"},
		{"another name", "api.example.com", 443, hello("evil.example"), false, "refuse tls api.example.com:443 name-mismatch"},
		{"a name below", "api.example.com", 443, hello("x.api.example.com"), false, "refuse tls api.example.com:443 name-mismatch"},
		{"no name", "api.example.com", 443, hello(""), false, "refuse tls api.example.com:443 no-name"},
		{"an encrypted name behind another", "api.example.com", 443, string(helloWithin(t, "front.example", "api.example.com")), false, "refuse tls api.example.com:443 name-mismatch"},
		{"an encrypted name behind the name", "api.example.com", 443, string(helloWithin(t, "api.example.com", "evil.example")), true, "end tls api.example.com:443"}, // a limit
		{"two names", "api.example.com", 443, string(withNames(nil, "api.example.com", "evil.example")), false, "refuse tls api.example.com:443 malformed"},
		{"not TLS", "api.example.com", 443, "SSH-2.0-x\r\n", false, "refuse tcp api.example.com:443 not-tls"},
		{"HTTP", "api.example.com", 443, "GET / HTTP/1.1\r\n\r\n", false, "refuse tcp api.example.com:443 not-tls"},
		{"raw", "raw.example.com", 443, "SSH-2.0-x\r\n", true, "end tcp raw.example.com:443"},
		{"raw with another name", "raw.example.com", 443, hello("evil.example"), true, "end tcp raw.example.com:443"},
		{"address", "93.184.216.34", 443, hello("anything.example"), true, "end tls 93.184.216.34:443"},
		{"address, not TLS", "93.184.216.34", 443, "SSH-2.0-x\r\n", false, "refuse tcp 93.184.216.34:443 not-tls"},
		{"another port", "api.example.com", 8443, hello("api.example.com"), true, "end tls api.example.com:8443"},
		{"another port, no name", "api.example.com", 8443, hello(""), true, "end tls api.example.com:8443"},
		{"another port, another name", "api.example.com", 8443, hello("evil.example"), false, "cut tcp api.example.com:8443 name-mismatch"},
		{"another port, not TLS", "api.example.com", 8443, "anything", true, "end tcp api.example.com:8443"},
		{"another port, begins like TLS", "api.example.com", 8443, "\x16SH", true, "end tcp api.example.com:8443"},
		// crypto/tls and OpenSSL skip a warning; what follows would go unread.
		{"a warning before another name", "api.example.com", 8443, warning + hello("evil.example"), false, "cut tcp api.example.com:8443 malformed"},
		{"a warning before the name", "api.example.com", 443, warning + hello("api.example.com"), false, "refuse tcp api.example.com:443 not-tls"},
		{"change cipher spec before another name", "api.example.com", 8443, "\x14\x03\x03\x00\x01\x01" + hello("evil.example"), false, "cut tcp api.example.com:8443 malformed"},
		{"another port, begins like a warning", "api.example.com", 8443, "\x15\x03", true, "end tcp api.example.com:8443"},
		// Hosts that share an address tell their databases apart by the SNI.
		{"PostgreSQL, the name", "api.example.com", 8443, string(sslRequest) + hello("api.example.com"), true, "end tls api.example.com:8443"},
		{"PostgreSQL, another name", "api.example.com", 8443, string(gssRequest) + string(sslRequest) + hello("evil.example"), false, "cut tcp api.example.com:8443 name-mismatch"},
		{"PostgreSQL without TLS", "api.example.com", 8443, string(sslRequest) + "\x00\x00\x00\x08\x00\x03\x00\x00", true, "end tcp api.example.com:8443"},
		{"PostgreSQL, unfinished", "api.example.com", 8443, string(sslRequest[:5]), true, "end tcp api.example.com:8443"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandbox(t, rules)
			heard := make(chan string, 1)
			server := func(c *net.TCPConn) {
				b, _ := io.ReadAll(c)
				heard <- string(b)
			}
			for _, at := range []string{"93.184.216.34:443", "93.184.216.34:8443"} {
				sb.serve("", at, server)
			}
			for _, name := range []string{"api.example.com", "raw.example.com"} {
				sb.names[name] = append(sb.names[name], addrOf("93.184.216.34"))
			}
			c := sb.dial(tc.host, tc.port)
			for i := range len(tc.send) { // a byte at a time: every check must wait for more
				if _, err := c.Write([]byte{tc.send[i]}); err != nil {
					break
				}
			}
			c.CloseWrite()
			io.ReadAll(c)
			r := sb.record()
			if r.Verdict == "allow" {
				r = sb.record()
			}
			if got := told(r); got != tc.record {
				t.Errorf("recorded %q (detail %q), want %q", got, r.Detail, tc.record)
			}
			if tc.passes {
				if got := <-heard; got != tc.send {
					t.Errorf("the server heard %d bytes of %d", len(got), len(tc.send))
				}
				return
			}
			select {
			case got := <-heard:
				if strings.Contains(got, "evil.example") {
					t.Errorf("the server heard %q", got)
				}
			default:
			}
		})
	}
}

// A ClientHello may be as long as 64 KiB, and no longer.
func TestLongHello(t *testing.T) {
	sized := func(n int) []byte {
		pad := append([]byte{0, 21, byte(n >> 8), byte(n)}, make([]byte, n)...)
		return resplit(helloWith(append(pad, serverNameExtension("api.example.com")...)), 1000)
	}
	sb := newSandbox(t, "egress:\n  rules:\n    - host: api.example.com\n      port: 443\n")
	sb.serve("api.example.com", "93.184.216.34:443", echo)
	c := sb.dial("api.example.com", 443)
	if got := exchange(t, c, string(sized(60000))); got != string(sized(60000)) {
		t.Errorf("%d bytes came back of a long ClientHello", len(got))
	}
	sb.wantRecords("allow tls api.example.com:443", "end tls api.example.com:443")
	if _, err := parseHello(resplit(sized(60000), 1)); err != errBadHello {
		t.Errorf("a ClientHello in ever so many records: %v", err)
	}
	f := &flow{target: target{host: "api.example.com", port: 443}}
	if ft := f.compareName("api.example.com."); ft != nil {
		t.Errorf("a name with a dot at its end: %v", ft.reason)
	}
	if ft := f.compareName("0x7f.1"); ft == nil || ft.reason != policy.NameMismatch {
		t.Errorf("an address as a name: %v", ft)
	}
}
