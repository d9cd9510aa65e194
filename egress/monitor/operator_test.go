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
	s.knock("tcp", queues[0].addr)
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
		{`{"verb":"permanent-deny","host":"p.example.org","port":443,"file":"policy.yaml"}`, 200, "", ""},
		{`{"verb":"approve","host":"not a host","port":22}`, 400, "", "cannot decide"},
		{`{"verb":"approve","host":"x.example.org"}`, 400, "", "port"},
		{`{"verb":"allow","host":"x.example.org","port":1}`, 400, "", "cannot decide \\\"allow\\\""},
		{`{"verb":"approve","host":"x.example.org","port":1,"forever":true}`, 400, "", "unknown field"},
		{`{"verb":"approve","host":"x.example.org","port":22,"uses":3,"for":60000000000}`, 200, "x.example.org:22 true", "no uplink"},
		{`{"verb":"approve","host":"x.example.org","port":22,"once":true,"uses":2}`, 400, "", "both once and"},
		{`{"verb":"approve","host":"x.example.org","port":22,"uses":-1}`, 400, "", "cannot approve -1 times"},
		{`{"verb":"approve","host":"x.example.org","port":22,"for":5}`, 400, "", "cannot approve for 5ns"},
		{`{"verb":"approve","host":"x.example.org","port":22,"request":"r1"}`, 400, "", "but with once"},
		{`{"verb":"approve","host":"x.example.org","port":22,"once":true,"request":"r1"}`, 409, "", "another one came"},
		{`{"verb":"deny","host":"x.example.org","port":22,"once":true}`, 400, "", "cannot deny for a time"},
		{`{"verb":"revoke","grant":99}`, 503, "", "no such grant"},
		{`{"verb":"revoke","host":"api.example.org","port":443}`, 200, "x.example.org:22 true", ""},
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
	kept, err := control.ReadDecisions(s.dir)
	s.must(err)
	if len(kept.Grants) != 3 || kept.Last != 7 {
		t.Errorf("%d grants outlive the monitor: %+v", len(kept.Grants), kept)
	}
}

// Uses are counted in one place: never spent twice and never given back, though
// the worker and the monitor die as they like.
func TestUsesAreCountedOnce(t *testing.T) {
	s, w := up(t)
	go w.apply()
	var decided control.Decided
	s.operator("POST", "/v1/decisions", `{"verb":"approve","host":"x.example.org","port":22,"uses":3}`, &decided)
	use := func(w *puppeteer, id uint64) string {
		w.say(control.ToMonitorFromWorker{Use: &control.Use{N: 5, Grant: id, Request: "r"}})
		m := w.next()
		if m.Used == nil || m.Used.N != 5 {
			t.Fatalf("the monitor said %+v", m.ToWorker)
		}
		return m.Used.Fault
	}
	left := func() int {
		kept, err := control.ReadDecisions(s.dir)
		s.must(err)
		return kept.Grants[0].Uses
	}
	if fault := use(w, decided.Grant.ID); fault != "" || left() != 2 {
		t.Errorf("the first of three: %q, %d left", fault, left())
	}
	if fault := use(w, decided.Grant.ID+1); fault == "" || left() != 2 {
		t.Errorf("a use of a grant that there is not: %q, %d left", fault, left())
	}

	// The worker dies with what it took.
	w.kill()
	w = s.worker()
	if r := w.apply(); r.Grants[0].Uses != 2 {
		t.Errorf("the next worker is told of %d uses", r.Grants[0].Uses)
	}
	use(w, decided.Grant.ID)

	// So does the monitor.
	s.stop()
	s.must(s.waitEnd())
	s.begin()
	if a := s.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	s.knock("tcp", queues[0].addr)
	w = s.worker()
	if r := w.apply(); len(r.Grants) != 1 || r.Grants[0].Uses != 1 || !r.Grants[0].Counted {
		t.Errorf("the next monitor's worker is told %+v", r.Grants)
	}
	if fault := use(w, decided.Grant.ID); fault != "" || left() != 0 {
		t.Errorf("the last of three: %q, %d left", fault, left())
	}
	if r := w.apply(); r.Grants[0].Uses != 0 { // at once, so that it refuses by itself
		t.Errorf("a grant that is used up is told as %+v", r.Grants)
	}
	if fault := use(w, decided.Grant.ID); fault == "" {
		t.Error("there was a fourth of three")
	}
}

// No use is given that could not be written down.
func TestUseThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := &Monitor{ledger: l}
	if err := l.change(func(d *control.Decisions) error {
		_, err := add(d, control.Grant{Host: "x.example.org", Port: 1, Allow: true, Counted: true, Uses: 2})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l.dir = filepath.Join(dir, "gone")
	if used, _ := m.spend(&control.Use{N: 1, Grant: 1}); used.Fault == "" {
		t.Error("a use was given that the disk knows nothing of")
	}
	l.dir = dir
	if used, last := m.spend(&control.Use{N: 2, Grant: 1}); used.Fault != "" || last {
		t.Errorf("the first of two: %q, %v", used.Fault, last)
	}
}

// Grants are bounded; those that are used up make room.
func TestGrantsAreBounded(t *testing.T) {
	d := new(control.Decisions)
	for i := range control.MaxGrants + 10 {
		_, err := add(d, control.Grant{Host: fmt.Sprintf("h%d.example.org", i), Port: 1, Allow: true, Counted: i < 5, Uses: 0})
		if full := i >= control.MaxGrants+5; full != (err != nil) {
			t.Fatalf("grant %d: %v", i, err)
		}
	}
	if len(d.Grants) != control.MaxGrants || d.Last != control.MaxGrants+5 {
		t.Errorf("%d are kept, the last is %d", len(d.Grants), d.Last)
	}
}

// A grant for a time ends by the machine's uptime, which nobody can set.
func TestGrantsEnd(t *testing.T) {
	l, err := openLedger(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := control.Now()
	for i, until := range []control.Uptime{now - 1, now + control.Uptime(time.Hour), 0} {
		if err := l.change(func(d *control.Decisions) error {
			_, err := add(d, control.Grant{Host: fmt.Sprintf("h%d.example.org", i), Port: 1, Allow: true, Until: until})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if g := l.grants(); len(g) != 2 || g[0].Host != "h1.example.org" {
		t.Errorf("those that count are %+v", g)
	}
}

// The time of a rule with a ttl begins when it comes into force, goes on through
// saves that leave it as it is, and survives the monitor.
func TestTimeToLiveGoesOn(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	const src = "egress:\n  rules:\n    - {host: a.example.org, port: 443, ttl: 1h}\n"
	begin := func(l *ledger, src string) (at control.Uptime) {
		t.Helper()
		p, err := policy.Parse("policy.yaml", []byte(src))
		if err == nil {
			err = l.begin(p)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, at = range l.began() {
		}
		return at
	}
	first := begin(l, src)
	if again := begin(l, "# moved\n"+src); again != first || first == 0 {
		t.Errorf("it began at %d, after a save at %d", first, again)
	}
	other, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again := begin(other, src); again != first {
		t.Errorf("for the next monitor it began at %d, not %d", again, first)
	}
	if begin(other, "egress: {rules: []}"); len(other.began()) != 0 {
		t.Errorf("what is no rule any more is remembered: %v", other.began())
	}
}

// A connection that waits is shown as one, and no longer once it is decided or
// gone.
func TestPendingThatWaits(t *testing.T) {
	s, w := up(t)
	go w.apply()
	s.save("egress:\n  defaults: {on_unlisted: hold}\n  rules: []\n")
	s.awaitLine("policy generation 2")
	rec := func(v control.Verdict, request string) control.Record {
		return control.Record{Verdict: v, Host: "www.example.org", Port: 443, Reason: "not-listed", Request: request}
	}
	list := func() (p []control.Pending) {
		s.operator("GET", "/v1/pending", "", &p)
		return p
	}
	w.record(rec(control.Hold, "r1"), rec(control.Hold, "r2"))
	if p := list(); len(p) != 1 || p[0].Waiting != 2 || p[0].Until == nil || p[0].Count != 2 || p[0].N != 1 {
		t.Errorf("two wait: %+v", p)
	}
	w.record(rec(control.Refuse, "r1"))
	if p := list(); p[0].Waiting != 1 || p[0].Count != 2 {
		t.Errorf("one waits: %+v", p)
	}

	// Either of those that were shown may be approved, and none that was not.
	var f control.Fault
	if code := s.operator("POST", "/v1/decisions", `{"verb":"approve","host":"www.example.org","port":443,"once":true,"request":"r9"}`, &f); code != 409 {
		t.Errorf("a request that is not there: %d %+v", code, f)
	}
	told := make(chan control.Rules, 1)
	go func() { told <- w.apply() }()
	var d control.Decided
	if code := s.operator("POST", "/v1/decisions", `{"verb":"approve","host":"www.example.org","port":443,"once":true,"request":"r2"}`, &d); code != 200 {
		t.Errorf("the request that waits: %d %+v", code, d)
	}
	if r := <-told; r.Grants[0].Request != "r2" || r.Grants[0].Uses != 1 {
		t.Errorf("the worker is told %+v", r.Grants)
	}
	if p := list(); len(p) != 0 {
		t.Errorf("what is decided is still pending: %+v", p)
	}

	// What passes only because nothing is enforced is pending too.
	w.record(control.Record{Verdict: control.Allow, Host: "try.example.org", Port: 443, Would: "not-listed", Request: "r3"})
	if p := list(); len(p) != 1 || p[0].Host != "try.example.org" || p[0].Reason != "not-listed" {
		t.Errorf("what would be refused: %+v", p)
	}

	// Whose program has gone away is told from what was refused.
	gone := rec(control.Refuse, "r5")
	gone.Reason = "cancelled"
	w.record(rec(control.Hold, "r5"), gone)
	if p := list(); len(p) != 2 || p[1].Waiting != 0 || !p[1].Cancelled || p[1].Reason != "not-listed" || p[1].Count != 1 {
		t.Errorf("whose program went away: %+v", p)
	}
	w.record(rec(control.Refuse, "r6"))
	if p := list(); p[1].Cancelled || p[1].Count != 2 {
		t.Errorf("it was refused again: %+v", p)
	}

	// With the worker, all who wait are gone.
	w.record(rec(control.Hold, "r4"))
	w.kill()
	s.worker().apply()
	if p := list(); p[1].Waiting != 0 {
		t.Errorf("after the worker's end: %+v", p)
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
		p.add(&control.Record{Host: fmt.Sprintf("h%d.example.org", i), Port: 1, Reason: string(policy.NotListed)}, string(policy.NotListed), time.Unix(int64(i), 0))
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
			Process: &control.Process{Name: name, Exe: detail, Ancestors: []string{name, detail}},
		})
		if line.ActionID != 1 && line.ActionID != 2 {
			t.Errorf("action %d", line.ActionID)
		}
		if line.ActionID == 1 && outcomes[control.Verdict(verdict)].action != 1 {
			t.Errorf("the verdict %q passes for allowed", verdict)
		}
		if len(line.Unmapped.Detail) > maxText || len(line.Actor.Process.Name) > maxHost {
			t.Errorf("text of %d and %d bytes is kept", len(line.Unmapped.Detail), len(line.Actor.Process.Name))
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
