package monitor

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// countWait is how long a scrape waits for what only the worker counts.
const countWait = time.Second

// metric is one name of Prometheus' text format
// (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).
type metric struct {
	name, kind, help string
	samples          func(s *snapshot) []sample
}

// sample is one value, with labels beside the sandbox: name, value, ...
type sample struct {
	labels []string
	value  float64
}

// snapshot is what is counted, at one moment.
type snapshot struct {
	status    control.Status
	decisions map[decided]uint64
	sent, got uint64
	reloads   map[string]uint64
	waiting   int
	pending   int
	grants    int
	size      int64
	lag       time.Duration
	dns       map[string]uint64
	inbound   inboundCounts
}

// decided is what decisions are counted by.
type decided struct{ verdict, reason string }

// metrics is all that is served, in this order.
var metrics = []metric{
	{"nemoclaw_decisions_total", "counter", "Decisions about connections and refused questions, by verdict and reason; an allowed one with a reason passed because it is not enforced.", func(s *snapshot) (list []sample) {
		for d, n := range s.decisions {
			list = append(list, sample{[]string{"verdict", d.verdict, "reason", d.reason}, float64(n)})
		}
		return list
	}},
	{"nemoclaw_connections_open", "gauge", "Connections that pass now.", one(func(s *snapshot) float64 { return float64(s.status.Open) })},
	{"nemoclaw_connections_waiting", "gauge", "Connections that wait for an operator.", one(func(s *snapshot) float64 { return float64(s.waiting) })},
	{"nemoclaw_bytes_total", "counter", "Bytes of connections that have ended, by direction as the sandbox sees it.", func(s *snapshot) []sample {
		return []sample{{[]string{"direction", "out"}, float64(s.sent)}, {[]string{"direction", "in"}, float64(s.got)}}
	}},
	{"nemoclaw_inbound_connections_total", "counter", "Connections from outside, and their ends, by verdict and reason.", func(s *snapshot) (list []sample) {
		for d, n := range s.inbound.decisions {
			list = append(list, sample{[]string{"verdict", d.verdict, "reason", d.reason}, float64(n)})
		}
		return list
	}},
	{"nemoclaw_inbound_connections_open", "gauge", "Connections from outside that are open now.", one(func(s *snapshot) float64 { return float64(s.inbound.open) })},
	{"nemoclaw_inbound_bytes_total", "counter", "Bytes of IP packets of connections from outside that have ended, by direction as the sandbox sees it.", func(s *snapshot) []sample {
		return []sample{{[]string{"direction", "out"}, float64(s.inbound.sent)}, {[]string{"direction", "in"}, float64(s.inbound.got)}}
	}},
	{"nemoclaw_inbound_lost_total", "counter", "Messages of the kernel about connections from outside that were not heard in time.", one(func(s *snapshot) float64 { return float64(s.inbound.lost) })},
	{"nemoclaw_dns_questions_total", "counter", "Questions of the sandbox, by the answer.", func(s *snapshot) []sample { return by("answer", s.dns) }},
	{"nemoclaw_policy_generation", "gauge", "Generation of the rules in force.", one(func(s *snapshot) float64 { return float64(s.status.Generation) })},
	{"nemoclaw_policy_fault", "gauge", "1 while the policy file is not in force as it stands.", one(func(s *snapshot) float64 { return truth(s.status.PolicyFault != "") })},
	{"nemoclaw_policy_reloads_total", "counter", "Policy files that were read because they had changed, by what came of it.", func(s *snapshot) []sample { return by("result", s.reloads) }},
	{"nemoclaw_worker_restarts_total", "counter", "Ends of the gateway's worker.", one(func(s *snapshot) float64 { return float64(s.status.Restarts) })},
	{"nemoclaw_pending", "gauge", "Hosts and ports that wait for a decision.", one(func(s *snapshot) float64 { return float64(s.pending) })},
	{"nemoclaw_grants", "gauge", "Decisions of operators that count.", one(func(s *snapshot) float64 { return float64(s.grants) })},
	{"nemoclaw_audit_lines_total", "counter", "Lines of the audit log, from its beginning.", one(func(s *snapshot) float64 { return float64(s.status.AuditLines) })},
	{"nemoclaw_audit_bytes", "gauge", "Size of the audit log.", one(func(s *snapshot) float64 { return float64(s.size) })},
	{"nemoclaw_audit_lag_seconds", "gauge", "Age of the oldest line that is not on the disk.", one(func(s *snapshot) float64 { return s.lag.Seconds() })},
	{"nemoclaw_audit_fault", "gauge", "1 while the audit log cannot be written and everything is refused.", one(func(s *snapshot) float64 { return truth(s.status.AuditFault != "") })},
	{"nemoclaw_audit_disturbed_total", "counter", "How often somebody else was found to have changed the audit log.", one(func(s *snapshot) float64 { return float64(s.status.AuditDisturbed) })},
	{"nemoclaw_start_time_seconds", "gauge", "When the gateway began, since 1970.", one(func(s *snapshot) float64 { return float64(s.status.Since.Unix()) })},
}

func one(value func(*snapshot) float64) func(*snapshot) []sample {
	return func(s *snapshot) []sample { return []sample{{nil, value(s)}} }
}

func by(label string, counts map[string]uint64) (list []sample) {
	for name, n := range counts {
		list = append(list, sample{[]string{label, name}, float64(n)})
	}
	return list
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *Monitor) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(expose(m.snapshot()))
}

// expose writes a snapshot down.
func expose(s *snapshot) []byte {
	var b bytes.Buffer
	for _, m := range metrics {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		lines := []string{}
		for _, sample := range m.samples(s) {
			labels := []string{"sandbox", s.status.ID}
			lines = append(lines, fmt.Sprintf("%s{%s} %v\n", m.name, pairs(append(labels, sample.labels...)), sample.value))
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.Bytes()
}

// pairs writes labels; in a value the format escapes these three alone.
func pairs(labels []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	words := []string{}
	for i := 0; i+1 < len(labels); i += 2 {
		words = append(words, fmt.Sprintf(`%s="%s"`, labels[i], escape.Replace(strings.ToValidUTF8(labels[i+1], "?"))))
	}
	return strings.Join(words, ",")
}

// tally is what the monitor counts for metrics. m.mu guards it.
type tally struct {
	decisions map[decided]uint64
	sent, got uint64
	reloads   map[string]uint64
	dns       map[string]uint64 // of workers that have ended
	current   map[string]uint64 // of the worker
	counted   chan struct{}     // closed when current is another
}

func newTally() tally {
	return tally{
		decisions: map[decided]uint64{}, dns: map[string]uint64{}, counted: make(chan struct{}),
		reloads: map[string]uint64{"changed": 0, "fault": 0},
	}
}

// note counts a record. What a worker says is text of its own: what is no reason
// of ours is counted as one other.
func (t *tally) note(r *control.Record) {
	d := decided{string(r.Verdict), r.Reason}
	if r.Verdict == control.Allow {
		d.reason = r.Would
	}
	if _, ok := outcomes[r.Verdict]; !ok {
		d.verdict = "other"
	}
	if d.reason != "" && !policy.Reason(d.reason).Known() {
		d.reason = "other"
	}
	t.decisions[d] += uint64(max(r.Count, 1))
	t.sent += uint64(max(r.Sent, 0))
	t.got += uint64(max(r.Got, 0))
}

// heard takes what the worker has counted. What is no answer of ours is counted
// as one other.
func (m *Monitor) heard(c *control.Counted) {
	counts := map[string]uint64{}
	for name, n := range c.DNS {
		if !isAnswer(name) {
			name = "other"
		}
		counts[name] += n
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tally.current = counts
	close(m.tally.counted)
	m.tally.counted = make(chan struct{})
}

// answers are what the worker counts questions by (RFC 6895, 2.3).
var answers = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "BADSIG", "dropped"}

func isAnswer(name string) bool { return slices.Contains(answers, name) }

// ended keeps the counts of a worker that is gone.
func (t *tally) ended() {
	for name, n := range t.current {
		t.dns[name] += n
	}
	t.current = nil
}

// askCounts has the worker tell what it has counted, if it answers in time.
func (m *Monitor) askCounts() {
	m.mu.Lock()
	conn, counted := m.worker.conn, m.tally.counted
	m.mu.Unlock()
	if conn == nil || conn.Send(control.ToWorker{Count: new(control.Count)}) != nil {
		return
	}
	timer := time.NewTimer(countWait)
	defer timer.Stop()
	select {
	case <-counted:
	case <-timer.C:
	case <-m.ending:
	}
}

func (m *Monitor) snapshot() *snapshot {
	m.askCounts()
	s := &snapshot{status: m.status(), grants: len(m.ledger.grants()), size: m.log.End().Offset, lag: m.log.Lag(), inbound: m.inbound.counts()}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &m.tally
	s.decisions, s.reloads, s.sent, s.got = maps.Clone(t.decisions), maps.Clone(t.reloads), t.sent, t.got
	s.waiting, s.pending = len(m.pending.held), len(m.pending.list)
	s.dns = maps.Clone(t.dns)
	for name, n := range t.current {
		s.dns[name] += n
	}
	return s
}
