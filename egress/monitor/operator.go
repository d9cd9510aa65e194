package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

const (
	// maxBody is the largest request of an operator, in bytes.
	maxBody = limits.Body
	// maxUses and maxFor bound one approval.
	maxUses = limits.Uses
	maxFor  = 366 * 24 * time.Hour
	// maxAsking is how many operators are answered at once; more are sent away.
	maxAsking = limits.Asking
	// answerTime is how long an operator may take to read an answer, and to say
	// what he wants.
	answerTime = limits.Answer
	// eventPatience is how long a reader of events may keep one line waiting.
	eventPatience = limits.Patience
)

// peerKey finds the peer of a connection in a request's context.
type peerKey struct{}

// serveOperator answers on the control socket, and returns the function that
// ends it.
func (m *Monitor) serveOperator() func() {
	// A monitor that was killed leaves its socket behind.
	os.Remove(filepath.Join(m.Dir, control.ControlSocket))
	l, err := control.Listen("unix", m.Dir, control.ControlSocket)
	if err != nil {
		m.note(err.Error())
		return func() {}
	}
	srv := &http.Server{
		Handler:           m.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       answerTime,
		WriteTimeout:      answerTime, // events set their own
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peer(c))
		},
	}
	go srv.Serve(l)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainWait/2)
		defer cancel()
		_ = srv.Shutdown(ctx) // readers of events get the last lines
		srv.Close()
	}
}

// peer returns who is at the other end (SO_PEERCRED, unix(7)), or nil.
func peer(c net.Conn) *unix.Ucred {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil {
		return nil
	}
	return cred
}

func (m *Monitor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, m.status()) })
	mux.HandleFunc("GET /v1/pending", func(w http.ResponseWriter, _ *http.Request) { reply(w, m.undecided()) })
	mux.HandleFunc("GET /v1/grants", func(w http.ResponseWriter, _ *http.Request) { reply(w, m.ledger.grants()) })
	mux.HandleFunc("POST /v1/decisions", m.serveDecision)
	mux.HandleFunc("POST /v1/reload", m.serveReload)
	mux.HandleFunc("GET /v1/events", m.serveEvents)
	mux.HandleFunc("GET /metrics", m.serveMetrics)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("cannot answer %s %q: there is no such thing", r.Method, r.URL.Path), "")
	})
	places := make(chan struct{}, maxAsking)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cred, _ := r.Context().Value(peerKey{}).(*unix.Ucred)
		if cred == nil || cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
			refuse(w, http.StatusForbidden, errors.New("cannot answer: only root may decide for a sandbox"), "")
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			refuse(w, http.StatusServiceUnavailable, fmt.Errorf("cannot answer more than %d at once", maxAsking), "")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, err error, hint string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(control.Fault{Error: err.Error(), Hint: hint})
}

func (m *Monitor) status() control.Status {
	_ = m.log.Check() // its fault is told next
	fault := ""
	if err := m.log.Fault(); err != nil {
		fault = err.Error()
	}
	disturbed, found := m.log.Disturbed()
	for i := range found {
		found[i] = "audit log: " + found[i]
	}
	denials := m.observable()
	m.mu.Lock()
	defer m.mu.Unlock()
	generation := m.rules.generation
	if m.rules.latest.Generation != 0 {
		generation = m.rules.latest.Generation
	}
	worker := 0
	if m.worker.ready {
		worker = m.worker.pid
	}
	return control.Status{
		ID:             m.attached.ID,
		Monitor:        os.Getpid(),
		Worker:         worker,
		Restarts:       m.worker.restarts,
		Since:          m.since,
		Policy:         m.attached.PolicyName,
		PolicyFile:     m.attached.PolicyFile,
		Digest:         m.rules.policy.Digest,
		Generation:     generation,
		PolicyFault:    m.rules.fault,
		Links:          append([]string{}, m.rules.links...),
		Open:           len(m.worker.open),
		Allowed:        m.allowed,
		Refused:        m.refused,
		AuditLog:       m.attached.AuditLog,
		AuditLines:     m.log.End().Sequence,
		AuditFault:     fault,
		AuditDisturbed: disturbed,
		Notes:          slices.Concat(m.notes, found, m.rules.warnings, m.newContainersOnly()),
		Denials:        denials,
	}
}

// newContainersOnly is the note about layers that a reload cannot change. The
// caller holds m.mu.
func (m *Monitor) newContainersOnly() (notes []string) {
	for _, layer := range otherLayers(m.rules.created, m.rules.policy) {
		notes = append(notes, "the policy's "+layer+" has changed: takes effect for new containers")
	}
	return notes
}

func (m *Monitor) undecided() []control.Pending {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending.lapse(time.Now())
	return append([]control.Pending{}, m.pending.list...)
}

func (m *Monitor) serveReload(w http.ResponseWriter, r *http.Request) {
	answer, err := m.reload()
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err, "the policy that was in force stays in force")
		return
	}
	reply(w, answer)
}

func (m *Monitor) serveDecision(w http.ResponseWriter, r *http.Request) {
	var d control.Decision
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("cannot understand the decision: %w", err), "")
		return
	}
	if err := m.understand(&d); err != nil {
		refuse(w, http.StatusBadRequest, err, "")
		return
	}
	cred := r.Context().Value(peerKey{}).(*unix.Ucred)
	decided, err := m.decide(d, fmt.Sprintf("uid %d pid %d", cred.Uid, cred.Pid))
	switch {
	case errors.Is(err, errOther):
		refuse(w, http.StatusConflict, err, "look at what is pending, and decide again")
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err, "")
	default:
		reply(w, decided)
	}
}

// understand checks a decision and puts its host into normal form.
func (m *Monitor) understand(d *control.Decision) error {
	switch d.Verb {
	case "approve":
	case "deny", "revoke", control.Permanent, control.PermanentDeny:
		if d.Once || d.Uses != 0 || d.For != 0 || d.Request != "" {
			return fmt.Errorf("cannot %s for a time or a number of times", d.Verb)
		}
	default:
		return fmt.Errorf("cannot decide %q: a decision is approve, deny, revoke, permanent or permanent-deny", d.Verb)
	}
	switch {
	case d.Grant != 0 && d.Verb != "revoke":
		return fmt.Errorf("cannot %s a grant by its number", d.Verb)
	case d.Grant != 0:
		return nil
	case d.Once && d.Uses != 0:
		return errors.New("cannot approve both once and for a number of times")
	case d.Uses < 0 || d.Uses > maxUses:
		return fmt.Errorf("cannot approve %d times: from 1 to %d is possible", d.Uses, maxUses)
	case d.For != 0 && (d.For < time.Second || d.For > maxFor):
		return fmt.Errorf("cannot approve for %s: from 1s to %s is possible", d.For, maxFor)
	case d.Request != "" && !d.Once:
		return errors.New("cannot approve one request but with once")
	}
	host, err := normal(d.Host)
	switch {
	case err != nil:
		return err
	case d.Port == 0:
		return errors.New("cannot decide without a port")
	}
	d.Host = host
	return nil
}

// normal is the form in which the worker compares hosts.
func normal(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		return addr.Unmap().String(), nil
	}
	name, err := policy.NormalHost(host)
	if err != nil {
		return "", fmt.Errorf("cannot decide: %w", err)
	}
	return name, nil
}

// judge asks a policy about a host in normal form.
func judge(p *policy.Policy, host string, port uint16, now time.Time) policy.Verdict {
	if addr, err := netip.ParseAddr(host); err == nil {
		return p.DecideAddr(addr, port, policy.Owner{}, now)
	}
	return p.Decide(host, port, policy.Owner{}, now)
}

// errOther is why a decision about one request is not taken: it would be about
// another.
var errOther = errors.New("cannot approve that request: another one came since it was shown")

// decide writes an operator's decision down, then puts it into force. Without
// its line in the log there is none.
func (m *Monitor) decide(d control.Decision, by string) (control.Decided, error) {
	m.changes.Lock()
	defer m.changes.Unlock()
	if d.Verb == control.Permanent || d.Verb == control.PermanentDeny {
		return control.Decided{Generation: m.generation()}, m.log.Append(m.decision(d, by))
	}
	if d.Request != "" && !m.shown(d) {
		return control.Decided{}, errOther
	}
	var g control.Grant
	err := m.ledger.change(func(kept *control.Decisions) (err error) {
		if d.Verb == "revoke" {
			if g, err = take(kept, d.Grant, d.Host, d.Port); err == nil {
				d.Host, d.Port = g.Host, g.Port
			}
		} else {
			g, err = add(kept, newGrant(d, by))
		}
		if err != nil {
			return err
		}
		d.Grant = g.ID
		return m.log.Append(m.decision(d, by))
	})
	if err != nil {
		return control.Decided{}, err
	}
	applied, err := m.put(func(*rules) {
		if d.Verb != "revoke" {
			m.pending.remove(d.Host, d.Port)
		}
	})
	return control.Decided{Generation: applied.Generation, Grant: g, Cut: applied.Cut, Warning: m.warning(d)}, err
}

// decision is the line about one.
func (m *Monitor) decision(d control.Decision, by string) *audit.Change {
	text := d.Verb + " " + net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port)))
	switch {
	case d.Request != "":
		text += " once, for request " + clip(d.Request, maxHost)
	case d.Once:
		text += " once"
	case d.Uses > 0:
		text += fmt.Sprintf(" %d times", d.Uses)
	}
	if d.For > 0 {
		text += " for " + d.For.String()
	}
	line := m.change(audit.KindDecision, text)
	u := &line.Unmapped
	u.By, u.Verb, u.Host, u.Port, u.Grant = by, d.Verb, d.Host, d.Port, d.Grant
	u.PolicyFile = clip(d.File, maxText)
	return line
}

// newGrant is what a decision grants.
func newGrant(d control.Decision, by string) control.Grant {
	g := control.Grant{Host: d.Host, Port: d.Port, Allow: d.Verb == "approve", By: by, Since: time.Now(), Request: d.Request, Uses: d.Uses}
	if d.Once {
		g.Uses = 1
	}
	g.Counted = g.Uses > 0
	if d.For > 0 {
		g.Until = control.Now() + control.Uptime(d.For)
	}
	return g
}

// shown tells whether the request of a decision is the one that is pending now,
// or waits.
func (m *Monitor) shown(d control.Decision) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending.lapse(time.Now())
	return m.pending.has(d.Host, d.Port, d.Request)
}

// warning says why an approval will not do what was meant.
func (m *Monitor) warning(d control.Decision) string {
	if d.Verb != "approve" {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch v := judge(m.rules.policy, d.Host, d.Port, time.Now()); {
	case v.Reason == policy.Denied:
		return "still refused: a deny rule beats every approval: " + m.rules.policy.Where(v.Rule)
	case v.Allow:
		return "allowed by the policy without it: " + m.rules.policy.Where(v.Rule)
	case !m.rules.plugged:
		return "still refused: the sandbox has no uplink"
	}
	if addr, err := netip.ParseAddr(d.Host); err == nil {
		if why := policy.Unapproved(addr); why != "" {
			return "still refused: " + why
		}
	}
	return ""
}

// serveEvents streams the audit lines of this sandbox. A reader that does not
// take a line within eventPatience is dropped; it may ask again from where it
// was.
func (m *Monitor) serveEvents(w http.ResponseWriter, r *http.Request) {
	var after uint64
	if s := r.URL.Query().Get("after"); s != "" {
		var err error
		if after, err = strconv.ParseUint(s, 10, 64); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("cannot understand after=%q", s), "it is the sequence number of an audit line")
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctl := http.NewResponseController(w)
	_ = ctl.Flush() // so that the reader knows it is connected
	_ = m.log.Follow(r.Context(), after, func(line []byte) error {
		if err := ctl.SetWriteDeadline(time.Now().Add(eventPatience)); err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		return ctl.Flush()
	})
}
