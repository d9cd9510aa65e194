package monitor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// scrape reads the counters as Prometheus would, and checks their form.
func (s *sandbox) scrape() map[string]float64 {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return control.Dial("unix", s.dir, control.ControlSocket)
		},
	}}
	resp, err := client.Get("http://gateway/metrics")
	s.must(err)
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		s.t.Errorf("served as %s", got)
	}
	text, err := io.ReadAll(resp.Body)
	s.must(err)
	return parseMetrics(s.t, string(text))
}

var (
	aboutLine  = regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`)
	sampleLine = regexp.MustCompile(`^([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)$`)
)

// parseMetrics takes text of version 0.0.4 and nothing else: every name has its
// help and its type before its samples, and no sample is there twice.
func parseMetrics(t *testing.T, text string) map[string]float64 {
	t.Helper()
	values, about := map[string]float64{}, map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := aboutLine.FindStringSubmatch(line); m != nil {
			if m[1] == "TYPE" && (m[3] != "counter" && m[3] != "gauge" || m[3] == "counter" != strings.HasSuffix(m[2], "_total")) {
				t.Errorf("the type of %s is %s", m[2], m[3])
			}
			about[m[2]] += m[1]
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("%q is neither a sample nor about one", line)
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		key := m[1] + "{" + m[2] + "}"
		if _, twice := values[key]; err != nil || twice || about[m[1]] != "HELPTYPE" {
			t.Errorf("%q: %v, twice %v, about it %q", line, err, twice, about[m[1]])
		}
		values[key] = value
	}
	return values
}

// The counters tell what happened.
func TestMetrics(t *testing.T) {
	s, w := up(t)
	w.record(
		control.Record{Verdict: control.Allow, Host: "api.example.org", Port: 443, Request: "r1"},
		control.Record{Verdict: control.Allow, Host: "api.example.org", Port: 443, Request: "r2", Would: "not-listed"},
		control.Record{Verdict: control.Refuse, Host: "www.example.org", Port: 443, Reason: "not-listed", Count: 7},
		control.Record{Verdict: control.Refuse, Host: "www.example.org", Port: 443, Reason: "\"}\n of its own"},
		control.Record{Verdict: "nonsense", Reason: "not-listed"},
		control.Record{Verdict: control.End, Request: "r2", Sent: 10, Got: 200},
	)
	go w.apply()
	s.save(andMore)
	s.awaitLine("policy generation 2")
	s.save("egress: [")
	s.awaitLine(`"kind":"fault"`)

	count := func(dns map[string]uint64) {
		if m := w.next(); m.Count == nil {
			t.Errorf("the monitor said %+v", m.ToWorker)
		}
		w.say(control.ToMonitorFromWorker{Counted: &control.Counted{DNS: dns}})
	}
	go count(map[string]uint64{"NOERROR": 3, "NXDOMAIN": 1})
	got := s.scrape()
	for key, want := range map[string]float64{
		`nemoclaw_decisions_total{sandbox="web",verdict="allow",reason=""}`:            1,
		`nemoclaw_decisions_total{sandbox="web",verdict="allow",reason="not-listed"}`:  1,
		`nemoclaw_decisions_total{sandbox="web",verdict="refuse",reason="not-listed"}`: 7,
		`nemoclaw_decisions_total{sandbox="web",verdict="refuse",reason="other"}`:      1,
		`nemoclaw_decisions_total{sandbox="web",verdict="other",reason="not-listed"}`:  1,
		`nemoclaw_connections_open{sandbox="web"}`:                                     1,
		`nemoclaw_bytes_total{sandbox="web",direction="out"}`:                          10,
		`nemoclaw_bytes_total{sandbox="web",direction="in"}`:                           200,
		`nemoclaw_policy_reloads_total{sandbox="web",result="changed"}`:                1,
		`nemoclaw_policy_reloads_total{sandbox="web",result="fault"}`:                  1,
		`nemoclaw_policy_fault{sandbox="web"}`:                                         1,
		`nemoclaw_pending{sandbox="web"}`:                                              0, // the reload decided it
		`nemoclaw_dns_questions_total{sandbox="web",answer="NOERROR"}`:                 3,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v, %v; want %v", key, v, ok, want)
		}
	}
	if lines := got[`nemoclaw_audit_lines_total{sandbox="web"}`]; lines < 8 {
		t.Errorf("%v audit lines", lines)
	}

	// What a worker counted outlives it.
	w.kill()
	w = s.worker()
	w.apply()
	go count(map[string]uint64{"NOERROR": 2})
	got = s.scrape()
	if n := got[`nemoclaw_dns_questions_total{sandbox="web",answer="NOERROR"}`]; n != 5 {
		t.Errorf("with the next worker's there are %v questions", n)
	}
	if n := got[`nemoclaw_worker_restarts_total{sandbox="web"}`]; n != 1 {
		t.Errorf("%v restarts", n)
	}
}

// A worker that keeps its counts to itself holds nobody up for ever.
func TestMetricsOfASilentWorker(t *testing.T) {
	s, _ := up(t)
	if got := s.scrape(); got[`nemoclaw_worker_restarts_total{sandbox="web"}`] != 0 || len(got) < 10 {
		t.Errorf("scraped %v", got)
	}
}

// The reasons are few, whatever a worker calls them.
func TestMetricsAreBounded(t *testing.T) {
	tally := newTally()
	for i := range 10_000 {
		tally.note(&control.Record{Verdict: control.Verdict(fmt.Sprint("v", i%100)), Reason: fmt.Sprint("r", i), Sent: -5})
	}
	if len(tally.decisions) != 1 || tally.sent != 0 {
		t.Errorf("%d kinds of decisions, %d bytes", len(tally.decisions), tally.sent)
	}
	if !policy.NotListed.Known() || policy.Reason("x").Known() {
		t.Error("the reasons are not known")
	}
}

// Whoever reads slowly, or not at all, holds up nobody but himself.
func TestSlowOperators(t *testing.T) {
	s, w := up(t)
	for range maxAsking - 2 {
		c, err := control.Dial("unix", s.dir, control.ControlSocket)
		s.must(err)
		defer c.Close()
		fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: gateway\r\n\r\n") // and reads nothing
	}
	long := strings.Repeat("x", maxText)
	for i := range 2000 { // far more than their buffers hold
		if answer := w.record(control.Record{Verdict: control.Refuse, Host: "www.example.org", Port: 443, Reason: "not-listed", Detail: long, Request: fmt.Sprint(i)}); answer.Fault != "" {
			t.Fatalf("a record is not written: %s", answer.Fault)
		}
	}
	done := make(chan control.Status)
	go func() { done <- s.status() }()
	select {
	case st := <-done:
		if st.Refused != 2000 {
			t.Errorf("%d were refused", st.Refused)
		}
	case <-time.After(patience):
		t.Fatal("the monitor is held up")
	}
}
