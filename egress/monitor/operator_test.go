package monitor

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// An operator's decisions: what the worker is told, and what the operator is.
func TestDecisions(t *testing.T) {
	s := newSandbox(t)
	s.save(onlyExample + "  deny:\n    - host: bad.example.org\n")
	if a := s.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	w := s.worker()
	w.apply()
	s.commit()
	for _, c := range []struct {
		body  string
		code  int
		grant string // the last that the worker has afterwards
		told  string // in the answer
	}{
		{`{"verb":"approve","host":"X.Example.org.","port":22}`, 200, "x.example.org:22 true", "no uplink"},
		{`{"verb":"deny","host":"x.example.org","port":22}`, 200, "x.example.org:22 false", ""},
		{`{"verb":"approve","host":"x.example.org","port":22}`, 200, "x.example.org:22 true", "no uplink"},
		{`{"verb":"approve","host":"bad.example.org","port":443}`, 200, "bad.example.org:443 true", "a deny rule beats every approval: policy.yaml:6"},
		{`{"verb":"approve","host":"api.example.org","port":443}`, 200, "api.example.org:443 true", "allowed by the policy without it: policy.yaml:3"},
		{`{"verb":"approve","host":"::ffff:192.0.2.1","port":443}`, 200, "192.0.2.1:443 true", "no uplink"},
		{`{"verb":"permanent","host":"p.example.org","port":443,"file":"policy.yaml"}`, 200, "", ""},
		{`{"verb":"approve","host":"not a host","port":22}`, 400, "", "cannot decide"},
		{`{"verb":"approve","host":"x.example.org"}`, 400, "", "port"},
		{`{"verb":"allow","host":"x.example.org","port":1}`, 400, "", "cannot decide \\\"allow\\\""},
		{`{"verb":"approve","host":"x.example.org","port":1,"for":"ever"}`, 400, "", "unknown field"},
		{`{`, 400, "", "cannot understand"},
		{`"` + strings.Repeat("x", maxBody) + `"`, 400, "", "too large"},
	} {
		var rules control.Rules
		applied := make(chan struct{})
		go func() {
			defer close(applied)
			if c.grant != "" {
				rules = w.apply()
			}
		}()
		var answer map[string]any
		code := s.operator("POST", "/v1/decisions", c.body, &answer)
		<-applied
		text := strings.ReplaceAll(fmt.Sprint(answer), `"`, `\"`)
		if code != c.code || !strings.Contains(text, c.told) || c.told == "" && strings.Contains(text, "warning") {
			t.Errorf("%.80s is answered %d %s", c.body, code, text)
		}
		if c.grant != "" {
			g := rules.Grants[len(rules.Grants)-1]
			if got := fmt.Sprintf("%s:%d %v", g.Host, g.Port, g.Allow); got != c.grant {
				t.Errorf("%s grants %s", c.body, got)
			}
		}
	}
	line := s.awaitLine(`"verb":"deny"`)
	if want := fmt.Sprintf(`"by":"uid 0 pid %d"`, os.Getpid()); !strings.Contains(line, want) {
		t.Errorf("the log does not say who decided: %s", line)
	}

	// They are all there after the monitor was killed and another began.
	s.stop()
	s.must(s.waitEnd())
	grants, err := control.ReadGrants(s.dir)
	s.must(err)
	if len(grants) != 4 {
		t.Errorf("%d grants outlive the monitor: %v", len(grants), grants)
	}
}

// What was refused waits for the operator until it is decided.
func TestPending(t *testing.T) {
	s, w := up(t)
	refused := func(host, reason string, port uint16, count int) control.Record {
		return control.Record{Verdict: control.Refuse, Host: host, Port: port, Reason: reason, Count: count, Process: &control.Process{PID: 12, Name: "curl"}}
	}
	direct := control.Record{Verdict: control.Refuse, Addr: netip.MustParseAddrPort("192.0.2.7:25"), Reason: "direct-address"}
	w.record(
		refused("www.example.org", "not-listed", 443, 0),
		refused("git.example.org", "not-listed", 22, 0),
		refused("bad.example.org", "denied", 443, 0),
		refused("www.example.org", "not-listed", 443, 20),
		refused("name.example.org", "search-domain", 0, 0),
		direct,
	)
	if got := s.pendings(); got != "git.example.org:22×1 www.example.org:443×21 192.0.2.7:25×1" {
		t.Errorf("pending: %s", got)
	}

	// Decisions and rules take them off the list.
	go w.apply()
	s.operator("POST", "/v1/decisions", `{"verb":"deny","host":"git.example.org","port":22}`, new(control.Decided))
	go w.apply()
	s.save(andMore)
	s.awaitLine("policy generation 3")
	if got := s.pendings(); got != "192.0.2.7:25×1" {
		t.Errorf("pending after decisions: %s", got)
	}
}

func (s *sandbox) pendings() string {
	s.t.Helper()
	var list []control.Pending
	s.operator("GET", "/v1/pending", "", &list)
	var words []string
	for _, p := range list {
		words = append(words, fmt.Sprintf("%s:%d×%d", p.Host, p.Port, p.Count))
	}
	return strings.Join(words, " ")
}

// However many hosts a program tries, the list stays as long as it may be.
func TestPendingIsBounded(t *testing.T) {
	var p pendings
	for i := range 3 * maxPending {
		p.add(&control.Record{Host: fmt.Sprintf("h%d.example.org", i), Port: 1, Reason: string(policy.NotListed)}, time.Unix(int64(i), 0))
	}
	if n := len(p.list); n != maxPending || p.list[0].Host != fmt.Sprintf("h%d.example.org", 2*maxPending) {
		t.Errorf("%d are kept, the first is %s", n, p.list[0].Host)
	}
}

// Faults are told as faults, and paths that are none too.
func TestUnknownPath(t *testing.T) {
	s, _ := up(t)
	for _, c := range []struct{ method, path string }{{"GET", "/"}, {"POST", "/v1/status"}, {"GET", "/v2/status"}} {
		var f control.Fault
		if code := s.operator(c.method, c.path, "", &f); code != 404 || f.Error == "" {
			t.Errorf("%s %s is answered %d %+v", c.method, c.path, code, f)
		}
	}
	var f control.Fault
	if code := s.operator("GET", "/v1/events?after=x", "", &f); code != 400 {
		t.Errorf("after=x is answered %d", code)
	}
	if fi, err := os.Stat(filepath.Join(s.dir, control.ControlSocket)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v %v", fi, err)
	}
}

// What a worker says in a record cannot become anything but text.
func FuzzRecord(f *testing.F) {
	f.Add("allow", "api.example.org", "tls", "detail\x1b[2J", "curl\u202e", int64(5))
	f.Add("nonsense", "", "", "", "", int64(-1))
	f.Fuzz(func(t *testing.T, verdict, host, proto, detail, name string, n int64) {
		line := network("web", &control.Record{
			Verdict: control.Verdict(verdict), Host: host, Proto: proto, Detail: detail, Sent: n, Got: n, Lasted: time.Duration(n),
			Process: &control.Process{Name: name, Exe: detail, Args: []string{detail, name}, Ancestors: []string{name, detail}},
		})
		if line.ActionID != 1 && line.ActionID != 2 {
			t.Errorf("action %d", line.ActionID)
		}
		if line.ActionID == 1 && outcomes[control.Verdict(verdict)].action != 1 {
			t.Errorf("the verdict %q passes for allowed", verdict)
		}
		if len(line.Unmapped.Detail) > maxText || len(line.Actor.Process.Args) > maxArgs {
			t.Errorf("text of %d and %d bytes is kept", len(line.Unmapped.Detail), len(line.Actor.Process.Args))
		}
	})
}

// The mode of the socket keeps others out; so does the monitor itself.
func TestStrangersAreRefused(t *testing.T) {
	m := new(Monitor)
	for _, c := range []struct {
		peer any
		code int
	}{
		{&unix.Ucred{Uid: 1000}, 403},
		{&unix.Ucred{Uid: uint32(os.Getuid())}, 404},
		{(*unix.Ucred)(nil), 403},
		{nil, 403},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/nothing", nil)
		m.handler().ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, c.peer)))
		if w.Code != c.code {
			t.Errorf("%v is answered %d, want %d", c.peer, w.Code, c.code)
		}
	}
}
