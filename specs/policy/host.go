package policy

import (
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// Lengths of names and labels: RFC 1035, section 2.3.4. A name of 255 octets
// on the wire has at most 253 characters when written.
const (
	maxName  = 253
	maxLabel = 63
)

// Why a name has no normal form. They are values, and do not quote the name,
// because names come from strangers and at any rate.
var (
	errNameEmpty   = errors.New("a host name cannot be empty")
	errNameLong    = errors.New("a host name has at most 253 characters")
	errLabelEmpty  = errors.New("a host name has no empty labels")
	errLabelLong   = errors.New("a label of a host name has at most 63 characters")
	errLabelHyphen = errors.New("a label of a host name neither begins nor ends with a hyphen")
	errNameChar    = errors.New("a host name holds only letters, digits, hyphens, underscores and dots")
	errNameNumber  = errors.New("a host name does not end in a number: that is an address")
)

// NormalHost returns the one form in which the policy, DNS, SNI and the Host
// header compare a name: lower case, without a dot at the end. A name holds
// one to 253 characters in labels of one to 63 letters, digits, hyphens and
// underscores (RFC 1123, section 2.1; underscores because people use them).
//
// It refuses everything that some resolver would take for an address: IP
// literals, and names whose last label is a number, decimal, octal or
// hexadecimal, such as 127.1 or 0x7f000001 (inet_aton(3)).
func NormalHost(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	switch {
	case s == "":
		return "", errNameEmpty
	case len(s) > maxName:
		return "", errNameLong
	}
	start, upper := 0, false
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if err := checkLabel(s[start:i]); err != nil {
				return "", err
			}
			start = i + 1
			continue
		}
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			upper = true
		default:
			return "", errNameChar
		}
	}
	if upper {
		s = strings.ToLower(s)
	}
	if isNumber(s[strings.LastIndexByte(s, '.')+1:]) {
		return "", errNameNumber
	}
	return s, nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errLabelEmpty
	case len(label) > maxLabel:
		return errLabelLong
	case label[0] == '-' || label[len(label)-1] == '-':
		return errLabelHyphen
	}
	return nil
}

// isNumber tells whether inet_aton(3), or a browser, would read the label as
// a number.
func isNumber(label string) bool {
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(label, digits) == ""
}

// wildcard is what stands before the literal part of a rule's host.
type wildcard string

const (
	exact     wildcard = ""
	oneLabel  wildcard = "*."  // exactly one label more
	subdomain wildcard = "**." // one label or more
)

// splitHost takes the wildcard off a rule's host.
func splitHost(host string) (wildcard, string) {
	for _, w := range []wildcard{subdomain, oneLabel} {
		if literal, ok := strings.CutPrefix(host, string(w)); ok {
			return w, literal
		}
	}
	return exact, host
}

// aLabels returns how a name outside of ASCII must be written, or "".
func aLabels(s string) string {
	ascii, err := idna.Lookup.ToASCII(s)
	if err != nil {
		return ""
	}
	if _, err := NormalHost(ascii); err != nil {
		return ""
	}
	return ascii
}

// never holds the ranges that no policy can open.
var never = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this host (0.0.0.0/8)"},
	{netip.MustParsePrefix("::/128"), "this host (::)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback (127.0.0.0/8)"},
	{netip.MustParsePrefix("::1/128"), "loopback (::1)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses and cloud metadata (169.254.0.0/16)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses (fe80::/10)"},
	{netip.MustParsePrefix("168.63.129.16/32"), "cloud metadata (168.63.129.16, Azure)"},
	{netip.MustParsePrefix("100.100.100.200/32"), "cloud metadata (100.100.100.200, Alibaba)"},
	{netip.MustParsePrefix("192.0.0.192/32"), "cloud metadata (192.0.0.192, Oracle)"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "cloud metadata (fd00:ec2::254, AWS)"},
	{netip.MustParsePrefix("fd20:ce::254/128"), "cloud metadata (fd20:ce::254, Google)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (224.0.0.0/4)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast (ff00::/8)"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 written as IPv6 (::ffff:0:0/96)"},
}

// neverReachable returns what part of prefix no policy can open, or "".
func neverReachable(prefix netip.Prefix) string {
	for _, n := range never {
		if n.prefix.Overlaps(prefix) {
			return n.what
		}
	}
	return ""
}

// Unapproved says why an operator's approval of an address would not be enough,
// or "". The gateway judges the address once more, by a longer list.
func Unapproved(addr netip.Addr) string {
	one := netip.PrefixFrom(addr, addr.BitLen())
	if what := neverReachable(one); what != "" {
		return "it lies in " + what + ", which no policy can open"
	}
	if within(one, private) {
		return "it is private: it takes a rule with allow_private"
	}
	return ""
}

// private holds the ranges that need allow_private and are common enough that
// a cidr rule without it is a mistake: RFC 1918, RFC 6598, RFC 4193. The
// gateway knows them all.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fc00::/7"),
}

// within tells whether one of the prefixes contains all of inner.
func within(inner netip.Prefix, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Bits() <= inner.Bits() && p.Contains(inner.Addr()) {
			return true
		}
	}
	return false
}
