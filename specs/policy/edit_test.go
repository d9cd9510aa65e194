package policy

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestAddRule adds npm.example.org:443 to files of every layout. "+" marks the
// text that must be new; nothing else may differ, also with the line ends of
// Windows and where the last line has no end.
func TestAddRule(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"a list indented below its key", `
egress:
  rules:
    - host: a.example.org
      port: 443
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"a list level with its key", `
egress:
  rules:
  - host: a.example.org
    port: 443
+  - host: npm.example.org
+    port: 443  # by alice
  deny:
  - host: b.example.org
network: {ingress: none}
`}, {"items in flow style", `
egress:
  rules:
    - {host: a.example.org, port: 443}
    - {host: b.example.org,
       port: 443
      }
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"comments about the last rule, and about what follows", `
egress:
  # AI inference
  rules:
    # the Claude API
    - host: a.example.org   # first
      port: 443             # last
      # raw: true
+    - host: npm.example.org
+      port: 443  # by alice

    # - host: c.example.org
  # never these
  deny: []
# the end
`}, {"a dash on a line of its own", `
egress:
  rules:
    -
      host: a.example.org
      ports:
        - 443
        - 8443
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"a last value that goes on for lines", `
egress:
  rules:
    - host: a.example.org
      port: 443
      name: "one
        - host: two"
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"a last rule by alias, in an anchored list", `
egress:
  deny:
    - &a
      host: a.example.org
      port: 443
  rules: &list
    - *a
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"an empty list", `
egress:
  rules: [+{host: npm.example.org, port: 443}+]+  # by alice+
  deny: []
`}, {"an empty list with a comment", `
egress:
  rules: [+{host: npm.example.org, port: 443}+] # none yet
`}, {"a list in flow style", `
egress: {rules: [ {host: a.example.org, port: 443}+, {host: npm.example.org, port: 443}+ ]}
`}, {"a list in flow style over lines", `
egress:
  rules: [
    {host: a.example.org, ports: [1, 2]}, # [one]
    {host: b.example.org, port: 443, name: "[b]"}+, {host: npm.example.org, port: 443}+
  ]+  # by alice+
`}, {"a list in flow style that ends in a comma", `
egress:
  rules: [
    {host: a.example.org, port: 443},+ {host: npm.example.org, port: 443}+
  ]+  # by alice+
`}, {"JSON", `
{"egress": {"rules": [{"host": "a.example.org", "port": 443}+, {host: npm.example.org, port: 443}+]}}
`}, {"document marks", `
---
egress:
  rules:
    - host: a.example.org
      port: 443
+    - host: npm.example.org
+      port: 443  # by alice
...
`}, {"only comments", `
# nothing yet
+egress:
+  rules:
+    - host: npm.example.org
+      port: 443  # by alice
`}} {
		t.Run(c.name, func(t *testing.T) {
			src, want := unmark(c.want)
			checkAdd(t, src, want)
			checkAdd(t, strings.ReplaceAll(src, "\n", "\r\n"), strings.ReplaceAll(want, "\n", "\r\n"))
			checkAdd(t, strings.TrimSuffix(src, "\n"), want)
		})
	}
}

// unmark splits a marked text into what it is without and with the new text.
// New lines begin with "+"; new parts of a line stand between two "+".
func unmark(marked string) (src, want string) {
	for _, line := range strings.SplitAfter(strings.TrimPrefix(marked, "\n"), "\n") {
		if added, ok := strings.CutPrefix(line, "+"); ok {
			want += added
			continue
		}
		for i, part := range strings.Split(line, "+") {
			want += part
			if i%2 == 0 {
				src += part
			}
		}
	}
	return src, want
}

func checkAdd(t *testing.T, src, want string) {
	t.Helper()
	got, err := AddRule([]byte(src), "npm.example.org", 443, "by alice")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSuffix(string(got), "\n") != strings.TrimSuffix(want, "\n") {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// TestAddKeepsBuiltInRules: a file that says nothing of egress has the
// built-in rules, and keeps them when it gets one of its own.
func TestAddKeepsBuiltInRules(t *testing.T) {
	for _, src := range []string{
		"filesystem:\n  read_write: [/w]\n",
		"filesystem:\n  read_write: [/w]",
		"  version: 1\n  network: {ingress: none}\n",
		"version: 1\r\n",
		"egress:\n  # never\n  deny:\n  - host: b.example.org\n",
		"egress:\n    deny: []\n    # the end\nversion: 1\n",
		"{version: 1}",
		"egress: {deny: []}\n",
		"egress: {}\n",
		"{}",
	} {
		before := parseT(t, src)
		out, err := AddRule([]byte(src), "npm.example.org", 443, "")
		if err != nil {
			t.Errorf("%q: %v", src, err)
			continue
		}
		after := parseT(t, string(out))
		rules := append(defaultRules(), Rule{Host: "npm.example.org", Ports: []PortRange{{443, 443}}})
		if got := after.meaning().Egress.Rules; !reflect.DeepEqual(got, rules) {
			t.Errorf("%q became\n%s", src, out)
		}
		if got, want := after.meaning().Egress.Deny, before.meaning().Egress.Deny; !reflect.DeepEqual(got, want) {
			t.Errorf("%q: deny was %v and is %v", src, want, got)
		}
	}
}

// TestAddToDefaultSource: what an operator starts from can be added to, again
// and again, each rule after the one before.
func TestAddToDefaultSource(t *testing.T) {
	src := DefaultSource()
	for _, host := range []string{"a.example.org", "*.b.example.org", "203.0.113.7", "2001:db8::7", "null", "C.example.org."} {
		var err error
		if src, err = AddRule(src, host, 8443, "approved\nat\tnoon \x1b[31m#1"); err != nil {
			t.Fatal(err)
		}
	}
	want := `      port: 443  # messages to the person whom the agent works for
    - host: a.example.org
      port: 8443  # approved at noon [31m#1
    - host: "*.b.example.org"
      port: 8443  # approved at noon [31m#1
    - cidr: "203.0.113.7/32"
      port: 8443  # approved at noon [31m#1
    - cidr: "2001:db8::7/128"
      port: 8443  # approved at noon [31m#1
    - host: "null"
      port: 8443  # approved at noon [31m#1
    - host: c.example.org
      port: 8443  # approved at noon [31m#1
    # A package registry.`
	if !bytes.Contains(src, []byte(want)) {
		t.Errorf("got\n%s", src)
	}
}

// TestAddRefuses: what would change nothing, or cannot be a rule, or has no
// place that can be found, is an error that says what to do.
func TestAddRefuses(t *testing.T) {
	src := `
egress:
  rules:
    - {host: a.example.org, port: 443}
    - {host: "*.b.example.org", port: 443}
    - {cidr: 203.0.113.0/24, port: 443}
    - {host: past.example.org, port: 443, expires: 2020-01-01T00:00:00Z}
  deny:
    - {host: "**.evil.example"}
`
	for _, c := range []struct {
		src, host string
		port      uint16
		told      string
		already   bool
	}{
		{src, "A.example.org", 443, "cannot add a.example.org:443: the policy says so already (line 4)", true},
		{src, "x.b.example.org", 443, "already (line 5)", true},
		{src, "*.b.example.org", 443, "already (line 5)", true},
		{src, "203.0.113.9", 443, "already (line 6)", true},
		{"version: 1", "github.com", 443, "already (built-in)", true},
		{src, "www.evil.example", 443, "a deny rule beats every other (line 9)", false},
		{src, "**.evil.example", 443, "a deny rule beats every other (line 9)", false},
		{src, "a.example.org", 0, "port \"0\" is not a number", false},
		{src, "*.com", 443, "anyone can register", false},
		{src, "a b", 443, "a host name holds only", false},
		{src, "x: y\n", 443, "a host name holds only", false},
		{src, "127.0.0.1", 443, "no policy can open", false},
		{src, "10.1.2.3", 443, "add \"allow_private: [10.1.2.3/32]\"", false},
		{"egress: {rule: []}", "c.example.org", 443, "a policy that has faults:\npolicy:1:10: egress: unknown key", false},
		{"~", "c.example.org", 443, "cannot add the rule to a file of this layout; paste it below egress.rules:\n  - host: c.example.org\n    port: 443", false},
	} {
		out, err := AddRule([]byte(c.src), c.host, c.port, "")
		if !told(err, c.told) || out != nil || errors.Is(err, ErrAlready) != c.already {
			t.Errorf("%s:%d: got %q and %v; want the error to tell %q", c.host, c.port, out, err, c.told)
		}
	}
	if _, err := AddRule([]byte(src), "past.example.org", 443, ""); err != nil {
		t.Errorf("a rule that has expired is in the way: %v", err)
	}
}

// TestAddDeny adds npm.example.org:443 to egress.deny of files of every layout, as
// TestAddRule does to egress.rules.
func TestAddDeny(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"a list", `
egress:
  deny:
    - host: a.example.org   # never
      # not even so
+    - host: npm.example.org
+      port: 443  # by alice
  rules:
    - host: npm.example.org
      port: 443
`}, {"no list, at the end of egress", `
egress:
  rules:
  - host: npm.example.org
    port: 443
    # about the last
+  deny:
+    - host: npm.example.org
+      port: 443  # by alice
network: {ingress: none}
`}, {"no list, behind a value that goes on for lines", `
egress:
  rules:
    - host: npm.example.org
      port: 443
      name: "one
        - host: two"
+  deny:
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"an empty list", `
egress:
  rules: []
  deny: [+{host: npm.example.org, port: 443}+]+  # by alice+
`}, {"flow style", `
egress: {+deny: [{host: npm.example.org, port: 443}], +rules: []}
`}, {"JSON", `
{"egress": {"rules": [], "deny": [{"host": "a.example.org"}+, {host: npm.example.org, port: 443}+]}}
`}, {"no egress", `
version: 1
+egress:
+  deny:
+    - host: npm.example.org
+      port: 443  # by alice
`}, {"only comments", `
# nothing yet
+egress:
+  rules: []
+  deny:
+    - host: npm.example.org
+      port: 443  # by alice
`}} {
		t.Run(c.name, func(t *testing.T) {
			src, want := unmark(c.want)
			for _, edit := range []func(string) string{
				func(s string) string { return s },
				func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
			} {
				got, err := AddDeny([]byte(edit(src)), "npm.example.org", 443, "by alice")
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != edit(want) {
					t.Errorf("\n got %q\nwant %q", got, edit(want))
				}
				p := parseT(t, string(got))
				if v := p.Decide("npm.example.org", 443, Owner{}, time.Now()); v.Reason != Denied {
					t.Errorf("it is not denied: %+v", v)
				}
			}
		})
	}
}

// What is denied already, or can be no rule, is told; what no rule could allow may
// be denied all the same.
func TestAddDenyRefuses(t *testing.T) {
	src := "egress:\n  rules: []\n  deny:\n    - {host: \"**.evil.example\"}\n    - {cidr: 203.0.113.0/24}\n"
	for _, c := range []struct {
		src, host string
		port      uint16
		told      string
		already   bool
	}{
		{src, "www.evil.example", 443, "cannot add www.evil.example:443: the policy says so already (line 4)", true},
		{src, "**.evil.example", 443, "already (line 4)", true},
		{src, "203.0.113.9", 1, "already (line 5)", true},
		{src, "a b", 443, "a host name holds only", false},
		{"egress: {rule: []}", "c.example.org", 443, "a policy that has faults:\npolicy:1:10: egress: unknown key", false},
		{"~", "c.example.org", 443, "paste it below egress.deny:\n  - host: c.example.org\n    port: 443", false},
	} {
		out, err := AddDeny([]byte(c.src), c.host, c.port, "")
		if !told(err, c.told) || out != nil || errors.Is(err, ErrAlready) != c.already {
			t.Errorf("%s:%d: got %q and %v; want the error to tell %q", c.host, c.port, out, err, c.told)
		}
	}
	for _, host := range []string{"10.1.2.3", "*.example.org", "null"} {
		if _, err := AddDeny([]byte(src), host, 443, ""); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// FuzzAddRule: for any file that parses, either the file with one rule more
// parses, means the same and that rule, and holds every byte of the old one in
// order; or there is an error and no file.
func FuzzAddRule(f *testing.F) {
	fuzzAdd(f, listRules, func(e *Egress) *[]Rule { return &e.Rules })
}

// FuzzAddDeny is the same for egress.deny.
func FuzzAddDeny(f *testing.F) {
	fuzzAdd(f, listDeny, func(e *Egress) *[]Rule { return &e.Deny })
}

func fuzzAdd(f *testing.F, list string, of func(*Egress) *[]Rule) {
	for _, pattern := range []string{"testdata/ok/*.yaml", "testdata/err/*.yaml"} {
		for _, file := range glob(f, pattern) {
			f.Add(read(f, file), "new.example.org", "a comment")
		}
	}
	f.Add([]byte("egress:\n  rules: [\n    {host: a.b, port: 1}, # ]\n  ]\n"), "*.new.example.org", "")
	f.Add([]byte("egress:\n  rules:\n  - host: a.b\n    port: 1\n    name: |\n      x\n"), "203.0.113.1", "x\u2028y")
	f.Add([]byte("# nothing\n"), "true", "\n- host: evil.example")
	f.Fuzz(func(t *testing.T, src []byte, host, comment string) {
		out, err := add(src, list, host, 443, comment)
		if err != nil {
			if out != nil {
				t.Fatalf("a file and the error %v", err)
			}
			return
		}
		rule, err := newRule(list, host, 443)
		if err != nil {
			t.Fatalf("added %q: %v", host, err)
		}
		before, err := Parse("before", src)
		if isEmpty(src) {
			before, err = Parse("before", []byte("egress: {rules: []}"))
		}
		if err != nil {
			t.Fatalf("added to a file that has faults: %v", err)
		}
		*of(&before.Egress) = append(*of(&before.Egress), rule)
		after, err := Parse("after", out)
		if err != nil || !reflect.DeepEqual(after.meaning(), before.meaning()) {
			t.Fatalf("%q became %q (%v)", src, out, err)
		}
		if !isSubsequence(src, out) {
			t.Fatalf("%q lost something: %q", src, out)
		}
	})
}

// isSubsequence tells whether all of part stands in whole, in order.
func isSubsequence(part, whole []byte) bool {
	for _, c := range whole {
		if len(part) > 0 && part[0] == c {
			part = part[1:]
		}
	}
	return len(part) == 0
}

// What ends some day is not what was asked for: a rule is added that does not.
func TestAddBesideWhatEnds(t *testing.T) {
	for _, c := range []struct {
		name, src string
		add       func([]byte, string, uint16, string) ([]byte, error)
	}{
		{"denied until", "egress:\n  rules: []\n  deny:\n    - {host: \"**.evil.example\", expires: 2999-01-01T00:00:00Z}\n", AddDeny},
		{"allowed until", "egress:\n  rules:\n    - {host: www.evil.example, port: 443, expires: 2999-01-01T00:00:00Z}\n", AddRule},
		{"allowed for", "egress:\n  rules:\n    - {host: www.evil.example, port: 443, ttl: 1h}\n", AddRule},
	} {
		out, err := c.add([]byte(c.src), "www.evil.example", 443, "")
		if err != nil || !strings.Contains(string(out), "- host: www.evil.example\n") {
			t.Errorf("%s: %q, %v", c.name, out, err)
			continue
		}
		if _, err := c.add(out, "www.evil.example", 443, ""); !errors.Is(err, ErrAlready) {
			t.Errorf("%s, and once more: %v", c.name, err)
		}
	}
}
