package policy

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"nemoclaw/specs/seccomp"
)

var update = flag.Bool("update", false, "rewrite testdata/err/*.err from the actual faults")

// TestFaults parses each testdata/err/NAME.yaml, in which everything is wrong.
// All of it is told at once, each with the line and a caret, as it stands in
// NAME.err.
func TestFaults(t *testing.T) {
	for _, file := range glob(t, "testdata/err/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			p, err := Parse(filepath.Base(file), read(t, file))
			if err == nil || p != nil {
				t.Fatalf("got policy %v and error %v, want faults alone", p, err)
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".yaml") + ".err"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(read(t, golden)); got != want {
				t.Errorf("faults differ\n got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// TestValid parses each testdata/ok/*.yaml, at create and at a reload.
func TestValid(t *testing.T) {
	for _, file := range glob(t, "testdata/ok/*.yaml") {
		src := read(t, file)
		p, err := Parse(file, src)
		if err != nil {
			t.Errorf("at create: %v", err)
			continue
		}
		if len(p.Digest) != 64 || p.File != file {
			t.Errorf("%s: digest %q, file %q", file, p.Digest, p.File)
		}
		_, err = ParseReload(file, src)
		if says := strings.Contains(string(src), "rules:"); says != (err == nil) {
			t.Errorf("%s at a reload: %v", file, err)
		}
	}
}

// TestEveryKey reads a file in which every key is set, and finds each value.
func TestEveryKey(t *testing.T) {
	p, err := Parse("everything.yaml", read(t, "testdata/ok/everything.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	port := func(n uint16) []PortRange { return []PortRange{{n, n}} }
	want := &Policy{
		File:   "everything.yaml",
		Digest: p.Digest,
		Filesystem: Filesystem{
			ReadOnly:       append([]Path{{Name: "/usr", Line: 3}, {Name: "/lib", Dir: true, NoExec: true, Line: 3}, {Name: "/etc", Line: 3}, {Name: "/", Line: 3}}, optional(EssentialReadOnly)[1:]...),
			ReadWrite:      append([]Path{{Name: "/sandbox", Line: 5}, {Name: "/tmp", Dir: true, Line: 6}, {Name: "/proc", Line: 7}}, optional(EssentialReadWrite)...),
			Deny:           []Path{{Name: "/usr/share/doc", Line: 8}, {Name: "/sandbox/.ssh", Dir: true, Line: 8}},
			WriteExecute:   false,
			AllowDevices:   []string{"/dev/fuse"},
			IncludeWorkdir: false,
			Image:          ImageStrict,
			Volumes:        VolumesPolicyOnly,
			AllowVolumes:   []string{"/home/alice/project"},
		},
		Landlock:     Landlock{BestEffort: true},
		Seccomp:      Seccomp{Deny: []Syscall{{"mkdirat", 16}}, Allow: []Syscall{{"ptrace", 16}, {"group:keyrings", 16}}},
		Capabilities: &Capabilities{Keep: []string{"CHOWN", "SETUID", "SETGID"}},
		Network: Network{
			Uplink:  "/run/netns/blue",
			Ingress: IngressNone,
			DNS:     []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")},
			Proxy:   "proxy.example.org:3128", ProxyAuth: "/etc/nemoclaw/proxy-auth",
		},
		Egress: Egress{
			Rules: []Rule{
				{Host: "api.github.com", Ports: port(443), Line: 21},
				{Host: "*.example.net", Ports: []PortRange{{443, 443}, {8443, 8443}, {8000, 8100}}, Line: 23},
				{Host: "**.example.org", Ports: port(22), Raw: true, Name: "ssh to anywhere below example.org", Line: 25},
				{
					Host: "db.corp.example", Ports: port(5432), Line: 29,
					AllowPrivate: prefixes("10.20.0.0/16", "fd12:3456::/32"),
					Expires:      time.Date(2027, 1, 31, 17, 0, 0, 0, time.UTC),
				},
				{CIDR: netip.MustParsePrefix("203.0.113.7/32"), Ports: port(22), Line: 33},
				{CIDR: netip.MustParsePrefix("10.20.0.0/16"), Ports: port(22), AllowPrivate: prefixes("10.0.0.0/8"), Line: 35},
				{
					Host: "git.example.org", Ports: port(443), Line: 38,
					Binaries:       []string{"/usr/bin/git", "/usr/lib/git-core/**"},
					MaxConnections: 32, Rate: Rate{20, time.Second}, MaxUpload: 50 << 20,
					IdleTimeout: 10 * time.Minute, TTL: 2 * time.Hour, DNS: []string{"TXT", "SRV"}, Audit: true,
				},
			},
			Deny: []Rule{
				{Host: "**.internal", Line: 56},
				{Host: "gist.github.com", Ports: port(443), Line: 57},
				{CIDR: netip.MustParsePrefix("127.0.0.0/8"), Line: 59},
				{Host: "perhaps.example.org", Line: 60, Audit: true},
			},
			Audit: true,
			Defaults: Defaults{
				Hold: 45 * time.Second, MaxConnections: 100, MaxUpload: 1e9, IdleTimeout: 90 * time.Minute,
			},
		},
		match: p.match,
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("\n got %+v\nwant %+v", p, want)
	}
}

// TestAbsentKeys: a key that is absent has its default, and a key that is
// present replaces only its own.
func TestAbsentKeys(t *testing.T) {
	built := Default()
	for _, c := range []struct {
		src  string
		same func(p *Policy) (got, want any)
	}{
		{"egress: {rules: []}", func(p *Policy) (any, any) { return p.Filesystem, built.Filesystem }},
		{"egress: {rules: []}", func(p *Policy) (any, any) { return p.Network, built.Network }},
		{"egress: {rules: []}", func(p *Policy) (any, any) { return len(p.Egress.Rules), 0 }},
		{"egress: {rules: []}", func(p *Policy) (any, any) { return p.Capabilities, (*Capabilities)(nil) }},
		{"version: 1", func(p *Policy) (any, any) { return p.meaning(), built.meaning() }},
		{"egress: {deny: [{host: github.com}]}", func(p *Policy) (any, any) { return p.Egress.Rules, built.Egress.Rules }},
		{"filesystem: {read_write: [/w]}", func(p *Policy) (any, any) { return p.Filesystem.ReadOnly, built.Filesystem.ReadOnly }},
		{"filesystem: {read_write: []}", func(p *Policy) (any, any) { return p.Filesystem.ReadWrite, optional(EssentialReadWrite) }},
		{"filesystem: {read_only: []}", func(p *Policy) (any, any) { return p.Filesystem.ReadOnly, optional(EssentialReadOnly) }},
		{"filesystem: {read_write: [/opt]}", func(p *Policy) (any, any) { return has(p.Filesystem.ReadOnly, "/opt"), false }},
		{"capabilities: {keep: []}", func(p *Policy) (any, any) { return *p.Capabilities, Capabilities{Keep: []string{}} }},
	} {
		p, err := Parse("policy.yaml", []byte(c.src))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := c.same(p); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", c.src, got, want)
		}
	}
}

// TestHold: to hold is a word, with a time that need not be said.
func TestHold(t *testing.T) {
	for src, want := range map[string]time.Duration{
		"egress: {rules: []}":                                            0,
		"egress: {rules: [], defaults: {on_unlisted: deny}}":             0,
		"egress: {rules: [], defaults: {on_unlisted: hold}}":             30 * time.Second,
		"egress: {rules: [], defaults: {on_unlisted: hold, hold: 300s}}": 5 * time.Minute,
	} {
		p, err := Parse("policy.yaml", []byte(src))
		if err != nil || p.Egress.Defaults.Hold != want {
			t.Errorf("%s: %v, %v", src, p, err)
		}
	}
}

// TestWarnings: what is valid and yet hardly meant, each with its line.
func TestWarnings(t *testing.T) {
	src := read(t, "testdata/warn/rules.yaml")
	p, err := Parse("rules.yaml", src)
	if err != nil {
		t.Fatal(err)
	}
	got := p.Warnings(src, now).Error() + "\n"
	if *update {
		if err := os.WriteFile("testdata/warn/rules.txt", []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, "testdata/warn/rules.txt")); got != want {
		t.Errorf("warnings differ\n got:\n%s\nwant:\n%s", got, want)
	}
	for src, want := range map[string]string{
		"egress:\n  rules: []\n": "policy.yaml:2:3: egress.rules is empty: every connection is refused",
		"egress:\n  rules:\n    - {host: a.example.org, port: 443}\n": "",
		string(DefaultSource()): "",
	} {
		p := parseT(t, src)
		p.File = "policy.yaml"
		if got, _, _ := strings.Cut(p.Warnings([]byte(src), now).Error(), "\n"); got != want {
			t.Errorf("%q warns %q, want %q", src, got, want)
		}
	}
}

// TestIngress: ports are written in one way, whatever the file's.
func TestIngress(t *testing.T) {
	for _, c := range []struct{ text, ingress, fault string }{
		{"all", IngressAll, ""},
		{"none", IngressNone, ""},
		{"{ports: [80]}", "80", ""},
		{"{ports: [8100, 8000-8099, 80, 80]}", "80,8000-8100", ""},
		{"{ports: [1-65535, 7]}", "1-65535", ""},
		{"some", "", "unknown value"},
		{"{ports: []}", "", "ports is empty"},
		{"{}", "", "needs ports"},
		{"{ports: [0]}", "", "neither a number from 1 to 65535"},
		{"{port: 80}", "", "unknown key"},
		{"[80]", "", "network.ingress"},
		{"'{ports: [80, 8000-8100]}'", "", "without the quotes"},
	} {
		p, err := Parse("policy.yaml", []byte("network: {ingress: "+c.text+"}\n"))
		switch {
		case c.fault != "":
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: %v; want %q", c.text, err, c.fault)
			}
		case err != nil || p.Network.Ingress != c.ingress:
			t.Errorf("%s: %v %v; want %q", c.text, p, err, c.ingress)
		}
	}
}

// TestProxy: a proxy is a host and a port, and no password stands in a policy.
func TestProxy(t *testing.T) {
	for _, c := range []struct{ text, proxy, fault string }{
		{"http://proxy.example.org:3128", "proxy.example.org:3128", ""},
		{"http://10.0.0.1:8080/", "10.0.0.1:8080", ""},
		{"'http://[2001:db8::1]:8080'", "[2001:db8::1]:8080", ""},
		{"http://proxy.example.org", "", "needs a port"},
		{"http://proxy.example.org:0", "", "needs a port"},
		{"proxy.example.org:3128", "", "not the URL of a proxy"},
		{"'http://:3128'", "", "host name"},
		{"https://proxy.example.org:3128", "", "only http://"},
		{"socks5://proxy.example.org:1080", "", "only http://"},
		{"http://agent:secret@proxy.example.org:3128", "", "proxy_auth_file"},
		{"http://proxy.example.org:3128/pac", "", "has a path"},
		{"http://127.0.0.1:3128", "", "never reachable"},
		{"http://169.254.169.254:80", "", "never reachable"},
		{"http://127.1:3128", "", "host name"},
	} {
		p, err := Parse("policy.yaml", []byte("network: {proxy: "+c.text+"}\n"))
		switch {
		case c.fault != "":
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: %v; want %q", c.text, err, c.fault)
			}
		case err != nil || p.Network.Proxy != c.proxy:
			t.Errorf("%s: %v %v; want %q", c.text, p, err, c.proxy)
		}
	}
	if _, err := Parse("policy.yaml", []byte("network: {proxy_auth_file: /etc/x}\n")); err == nil || !strings.Contains(err.Error(), "needs network.proxy") {
		t.Errorf("credentials without a proxy: %v", err)
	}
}

// TestReloadInsistsOnRules: what is left of a file while an editor writes it
// must not bring the built-in rules back.
func TestReloadInsistsOnRules(t *testing.T) {
	whole := "version: 1\nnetwork: {ingress: none}\negress:\n  deny: []\n  rules:\n    - host: a.example.org\n      port: 443\n"
	if _, err := ParseReload("policy.yaml", []byte(whole)); err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		p, err := ParseReload("policy.yaml", []byte(whole[:n]))
		if err == nil && p.Decide("github.com", 443, Owner{}, time.Now()).Allow {
			t.Errorf("half a file opens the built-in rules:\n%s", whole[:n])
		}
	}
}

// TestSizes: a file may be large, but neither too large, nor grow by aliases,
// nor drown a person in faults.
func TestSizes(t *testing.T) {
	many := "egress:\n  rules:\n"
	for i := range 10_000 {
		many += fmt.Sprintf("  - {host: h%d.example.org, port: 443}\n", i)
	}
	if _, err := Parse("many", []byte(many)); err != nil {
		t.Errorf("10,000 rules: %v", err)
	}
	if _, err := Parse("large", []byte(many+strings.Repeat("#", maxSource))); !told(err, "at most 1048576") {
		t.Errorf("more than 1 MiB: %v", err)
	}
	ports := "[" + strings.Repeat("1,", 5000) + "1]"
	bomb := "egress:\n  rules:\n  - {host: a.example.org, ports: &p " + ports + "}\n" + strings.Repeat("  - {host: a.example.org, ports: *p}\n", 5000)
	if _, err := Parse("bomb", []byte(bomb)); !told(err, "aliases expand to more than") {
		t.Errorf("25 million values by aliases: %v", err)
	}
	_, err := Parse("wrong", []byte("egress: {rules: ["+strings.Repeat("1,", 1000)+"]}"))
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != maxFaults || !told(err, "(and 950 more faults)") {
		t.Errorf("1,000 faults are told as %d", len(faults))
	}
}

// TestSnippetIsPrintable: a policy may come from anywhere, and its faults are
// shown on a terminal.
func TestSnippetIsPrintable(t *testing.T) {
	f := &Fault{File: "p", Line: 7, Col: 3, Msg: "m", Text: "\ta\u202eb\x1b[31m\u0085ü"}
	if got, want := f.Snippet(), "  |\n7 |  a?b?[31m?ü\n  |   ^\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestFaultsUnwrap: a program finds the first fault's position by errors.As.
func TestFaultsUnwrap(t *testing.T) {
	_, err := Parse("policy.yaml", []byte("version: 1\nversion: 1\n"))
	var f *Fault
	if !errors.As(err, &f) || f.Line != 2 || f.Col != 1 || f.File != "policy.yaml" {
		t.Errorf("got %+v", f)
	}
}

// FuzzParse: for any bytes there is a policy or there are faults, never both;
// a fault has a position within the file; a policy names hosts in their normal
// form only and survives being read twice.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/ok/*.yaml", "testdata/err/*.yaml"} {
		for _, file := range glob(f, pattern) {
			f.Add(read(f, file))
		}
	}
	f.Add(DefaultSource())
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Parse("fuzz.yaml", src)
		if err != nil {
			checkFaults(t, p, err, src)
			return
		}
		again, err := Parse("fuzz.yaml", src)
		if err != nil || !reflect.DeepEqual(p.meaning(), again.meaning()) {
			t.Fatalf("read twice, it differs: %v", err)
		}
		for _, r := range append(p.Egress.Rules, p.Egress.Deny...) {
			checkRule(t, p, r)
		}
	})
}

func checkFaults(t *testing.T, p *Policy, err error, src []byte) {
	var faults Faults
	if p != nil || !errors.As(err, &faults) || len(faults) == 0 {
		t.Fatalf("policy %v and error %v", p, err)
	}
	lines := strings.Count(string(src), "\n") + 1
	for _, f := range faults {
		if f.Line < 1 || f.Line > lines || f.Col < 1 {
			// Other line ends than \n count for YAML, and not for editors.
			if !strings.ContainsAny(string(src), "\r\u0085\u2028\u2029") {
				t.Errorf("%d lines, fault at %d:%d", lines, f.Line, f.Col)
			}
		}
	}
}

func checkRule(t *testing.T, p *Policy, r Rule) {
	if (r.Host == "") != r.CIDR.IsValid() {
		t.Errorf("rule %v has host %q and cidr %v", r, r.Host, r.CIDR)
	}
	if r.Host == "" {
		return
	}
	_, literal := splitHost(r.Host)
	if name, err := NormalHost(literal); err != nil || name != literal {
		t.Errorf("rule %v is not in normal form: %q, %v", r, name, err)
	}
	for _, pr := range r.Ports {
		if pr.First < 1 || pr.Last < pr.First {
			t.Errorf("rule %v has ports %v", r, pr)
		}
	}
}

func glob(t testing.TB, pattern string) []string {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no file matches %s: %v", pattern, err)
	}
	return files
}

func read(t testing.TB, file string) []byte {
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func told(err error, text string) bool {
	return err != nil && strings.Contains(err.Error(), text)
}

// FuzzSystemCalls: what a policy may say of system calls compiles to a filter
// that does it: words that mean nothing have no place in a policy that parses.
func FuzzSystemCalls(f *testing.F) {
	for _, seed := range [][2]string{{"mkdirat", "ptrace"}, {"kcmp", "group:debugging"}, {"", "group:keyrings"}, {"group:sockets", "socket"}, {"execve", "read"}, {"PTRACE", "group:"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, deny, allow string) {
		p, err := Parse("p.yaml", fmt.Appendf(nil, "egress: {rules: []}\nseccomp: {deny: [%q], allow: [%q]}\n", deny, allow))
		if err != nil {
			return
		}
		denials, err := seccomp.Denials([]string{p.Seccomp.Deny[0].Name}, []string{p.Seccomp.Allow[0].Name}, nil)
		if err != nil {
			t.Fatalf("deny %q, allow %q: %v", deny, allow, err)
		}
		if _, err := seccomp.Compile(denials); err != nil {
			t.Fatal(err)
		}
		if last := denials[len(denials)-1]; last.Call != p.Seccomp.Deny[0].Name || len(last.If) > 0 {
			t.Errorf("deny %q is not in force: %v", deny, last)
		}
		for _, d := range denials[:len(denials)-1] {
			if d.Call == p.Seccomp.Allow[0].Name {
				t.Errorf("allow %q is not in force: %v", allow, d)
			}
		}
	})
}
