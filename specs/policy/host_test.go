package policy

import (
	"strings"
	"testing"
)

// TestNormalHost: one form for every spelling of a name, and none for what is
// not a name.
func TestNormalHost(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat("a234567.", 31) + "abcde"
	for _, c := range []struct {
		in, want string
		err      error
	}{
		{"example.org", "example.org", nil},
		{"Example.ORG", "example.org", nil},
		{"example.org.", "example.org", nil},
		{"xn--bcher-kva.example", "xn--bcher-kva.example", nil},
		{"_dmarc.example.org", "_dmarc.example.org", nil},
		{"localhost", "localhost", nil},
		{"1.2.3.4.example.org", "1.2.3.4.example.org", nil},
		{"r3---sn-x.example.org", "r3---sn-x.example.org", nil},
		{"0x7f.example.0xg", "0x7f.example.0xg", nil},
		{label63 + ".org", label63 + ".org", nil},
		{name253, name253, nil},
		{name253 + ".", name253, nil},

		{"", "", errNameEmpty},
		{".", "", errNameEmpty},
		{name253 + "f", "", errNameLong},
		{"..", "", errLabelEmpty},
		{".example.org", "", errLabelEmpty},
		{"example..org", "", errLabelEmpty},
		{"example.org..", "", errLabelEmpty},
		{label63 + "a.org", "", errLabelLong},
		{"-a.example.org", "", errLabelHyphen},
		{"example.org-", "", errLabelHyphen},
		{"*.example.org", "", errNameChar},
		{"exa mple.org", "", errNameChar},
		{"example.org:443", "", errNameChar},
		{"example.org/", "", errNameChar},
		{"user@example.org", "", errNameChar},
		{"example.org\x00.evil.example", "", errNameChar},
		{"bücher.example", "", errNameChar},
		{"example。org", "", errNameChar}, // an ideographic full stop
		{"example.org\n", "", errNameChar},
		{"%65xample.org", "", errNameChar},
		{"::1", "", errNameChar},
		{"[::1]", "", errNameChar},

		// What inet_aton(3) and browsers take for an address.
		{"127.0.0.1", "", errNameNumber},
		{"127.1", "", errNameNumber},
		{"127.1.", "", errNameNumber},
		{"2130706433", "", errNameNumber},
		{"0x7f000001", "", errNameNumber},
		{"0X7F.1", "", errNameNumber},
		{"0x7f.0x1", "", errNameNumber},
		{"0177.0.0.01", "", errNameNumber},
		{"example.0x", "", errNameNumber},
		{"example.08", "", errNameNumber},
	} {
		got, err := NormalHost(c.in)
		if got != c.want || err != c.err {
			t.Errorf("NormalHost(%q) = %q, %v; want %q, %v", c.in, got, err, c.want, c.err)
		}
	}
}

// TestNormalHostIsFree: a name in normal form costs no memory; the gateway
// asks for each connection and each DNS question.
func TestNormalHostIsFree(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { NormalHost("api.example.org") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzNormalHost: what comes out is in the alphabet and within the lengths,
// comes out of itself, and out of the name in capitals with a dot.
func FuzzNormalHost(f *testing.F) {
	for _, s := range []string{"example.org", "Example.ORG.", "127.1", "0x7f.1", "a..b", "-a", "_a.b", "bücher.example", "1e5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := NormalHost(s)
		if err != nil {
			if name != "" {
				t.Fatalf("name %q and error %v", name, err)
			}
			return
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(name) > 253 || name == "" {
			t.Fatalf("%q became %q", s, name)
		}
		for _, label := range strings.Split(name, ".") {
			if len(label) < 1 || len(label) > 63 {
				t.Fatalf("%q became %q, with the label %q", s, name, label)
			}
		}
		for _, other := range []string{name, strings.ToUpper(name) + "."} {
			if again, err := NormalHost(other); again != name || err != nil {
				t.Fatalf("%q became %q became %q, %v", s, name, again, err)
			}
		}
		if prefix, ok := asPrefix(name); ok {
			t.Fatalf("%q became %q, which is the address %v", s, name, prefix)
		}
	})
}
