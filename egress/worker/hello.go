package worker

import (
	"bytes"
	"errors"

	"golang.org/x/crypto/cryptobyte"
)

// What a ClientHello may turn out to be. errMore asks for more bytes.
var (
	errMore     = errors.New("the ClientHello is not complete")
	errNotTLS   = errors.New("the first bytes are not TLS")
	errBadHello = errors.New("the ClientHello is malformed")
)

const (
	recordHandshake = 22
	recordHeader    = 5
	maxRecord       = 1 << 14 // of plaintext, RFC 8446, 5.1
	clientHello     = 1
	extServerName   = 0
)

// strayRecord tells whether b begins with a TLS record of another kind than the
// handshake's. Servers skip a warning before the ClientHello (Go's crypto/tls,
// OpenSSL), so that it would hide the name. more asks for the rest of a header
// that may be one.
func strayRecord(b []byte) (stray, more bool) {
	for i, c := range b[:min(len(b), recordHeader)] {
		switch {
		case i == 0 && (c < 20 || c > 24 || c == recordHandshake),
			i == 1 && c != 3,
			i == 2 && c > 4,
			i == 3 && c > maxRecord>>8+1:
			return false, false
		}
	}
	return len(b) >= recordHeader, len(b) < recordHeader
}

// sslRequest is what a PostgreSQL client says before the ClientHello, and
// gssRequest what it may say before that (PostgreSQL 18 manual, 54.7, SSLRequest
// and GSSENCRequest).
var (
	sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}
	gssRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30}
)

// asksForTLS tells whether b begins with such a request; more asks for the rest
// of one.
func asksForTLS(b []byte) (asks, more bool) {
	n := min(len(b), len(sslRequest))
	if !bytes.Equal(b[:n], sslRequest[:n]) && !bytes.Equal(b[:n], gssRequest[:n]) {
		return false, false
	}
	return n == len(sslRequest), n < len(sslRequest)
}

// parseHello reads the first flight of a TLS client, which may be spread over
// several records, and returns the name in its server_name extension as it
// stands there; "" if it has none.
func parseHello(b []byte) (string, error) {
	message, err := joinRecords(b)
	if err != nil {
		return "", err
	}
	s := cryptobyte.String(message)
	var kind uint8
	var body cryptobyte.String
	if !s.ReadUint8(&kind) || !s.ReadUint24LengthPrefixed(&body) {
		return "", errBadHello
	}
	return serverName(body)
}

// joinRecords returns the first handshake message, out of its records. Who cuts
// it into more than maxRecords makes work and nothing else.
func joinRecords(b []byte) ([]byte, error) {
	var joined []byte
	for records := 1; ; records++ {
		switch {
		case records > maxRecords:
			return nil, errBadHello
		case len(b) > 0 && b[0] != recordHandshake, len(b) > 1 && b[1] >= 16:
			if joined == nil {
				return nil, errNotTLS
			}
			return nil, errBadHello // something else in the middle of a message
		case len(b) > 1 && b[1] != 3: // no version of TLS, but crypto/tls takes it
			return nil, errBadHello
		}
		if len(b) < recordHeader {
			return nil, errMore
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return nil, errBadHello
		}
		fragment := b[recordHeader:min(len(b), recordHeader+n)]
		if joined == nil && len(fragment) == n {
			joined = fragment[:n:n] // mostly the only one: no copy
		} else {
			joined = append(joined, fragment...)
		}
		if len(joined) > 0 && joined[0] != clientHello {
			return nil, errBadHello
		}
		if len(joined) >= 4 {
			want := 4 + (int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3]))
			if want > maxHello {
				return nil, errBadHello
			}
			if len(joined) >= want {
				return joined[:want], nil
			}
		}
		if len(fragment) < n {
			return nil, errMore
		}
		b = b[recordHeader+n:]
	}
}

// serverName reads a ClientHello's body (RFC 8446, 4.1.2). Every extension may
// stand there once: of two names, two servers would choose differently.
func serverName(s cryptobyte.String) (string, error) {
	var session, suites, compression, extensions cryptobyte.String
	if !s.Skip(2+32) || // version, random
		!s.ReadUint8LengthPrefixed(&session) ||
		!s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&compression) {
		return "", errBadHello
	}
	if s.Empty() { // no extensions: before RFC 3546
		return "", nil
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return "", errBadHello
	}
	name := ""
	seen := make(map[uint16]bool, 24)
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) || seen[kind] {
			return "", errBadHello
		}
		seen[kind] = true
		if kind == extServerName {
			var ok bool
			if name, ok = onlyName(data); !ok {
				return "", errBadHello
			}
		}
	}
	return name, nil
}

// onlyName reads a server_name extension (RFC 6066, 3), which names exactly
// one host.
func onlyName(data cryptobyte.String) (string, bool) {
	var list, host cryptobyte.String
	var kind uint8
	ok := data.ReadUint16LengthPrefixed(&list) && data.Empty() &&
		list.ReadUint8(&kind) && kind == 0 &&
		list.ReadUint16LengthPrefixed(&host) && list.Empty() &&
		len(host) > 0
	return string(host), ok
}
