package monitor

import (
	"cmp"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// What of a record's text is kept, in bytes. Agents choose these strings.
const (
	maxHost = 255
	maxText = 1024
	maxKin  = 16 // ancestors
)

// record writes what the worker reports, and answers it: nothing of it may
// happen before.
func (m *Monitor) record(r *control.Records) *control.Written {
	m.attribute(r.List)
	lines := make([]audit.Entry, len(r.List))
	for i := range r.List {
		lines[i] = network(m.attached.ID, &r.List[i])
	}
	err := m.log.Append(lines...)
	m.count(r.List, err == nil)
	if err != nil {
		return &control.Written{N: r.N, Fault: err.Error()}
	}
	return &control.Written{N: r.N}
}

// attribute finds out whose connections these are, while they are open: that is
// until their records are written. A connection keeps its owner until its end.
// However many there are, it takes no longer than one search.
func (m *Monitor) attribute(list []control.Record) {
	deadline := time.Now().Add(scanBudget)
	for i := range list {
		r := &list[i]
		if owner, known := m.owner(r.Request); known {
			r.Process = owner
		} else if r.Verdict == control.Allow || r.Verdict == control.Refuse || r.Verdict == control.Hold {
			r.Process = m.whose(r, deadline)
		}
	}
}

// whose is the process behind a record's beginning. Who sent other packets than
// TCP's and UDP's cannot be told.
func (m *Monitor) whose(r *control.Record, deadline time.Time) *control.Process {
	switch number, known := transport(r); {
	case !known || !r.Src.IsValid():
		return nil
	case number == unix.IPPROTO_UDP:
		return m.owners.sender(r.Src, r.Dst, deadline)
	case number == unix.IPPROTO_TCP && r.Dst.IsValid():
		return m.owners.find(r.Src, r.Dst, deadline)
	}
	return nil
}

// transport is the protocol of IP that a record is about, by its number. The
// words above TCP are "tls" and "http"; questions come over either.
func transport(r *control.Record) (number int, known bool) {
	switch r.Proto {
	case "tls", "http":
		return unix.IPPROTO_TCP, true
	case "dns":
		if r.Dst.IsValid() {
			return unix.IPPROTO_TCP, true
		}
		return unix.IPPROTO_UDP, true
	}
	return control.ProtoNumber(r.Proto)
}

// owner returns the process behind an open connection.
func (m *Monitor) owner(request string) (owner *control.Process, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	owner, known = m.worker.open[clip(request, maxHost)]
	return owner, known
}

// count keeps Status and the pending decisions. Of what could not be written
// only the ends are true: nothing new was allowed.
func (m *Monitor) count(list []control.Record, written bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for i := range list {
		if written {
			m.tally.note(&list[i])
		}
		switch r := &list[i]; r.Verdict {
		case control.Allow:
			m.pending.release(r.Request)
			if written {
				m.allowed++
				m.worker.opened(r.Request, r.Process)
			}
			if r.Would != "" {
				m.pending.add(r, r.Would, now)
			}
		case control.Refuse:
			m.worker.closed(r.Request) // its address was none that may be reached
			m.refused += uint64(max(r.Count, 1))
			m.pending.add(r, r.Reason, now)
		case control.Hold:
			m.pending.hold(r, now, m.rules.policy.Egress.Defaults.Hold)
		case control.End, control.Cut, control.Fail:
			m.worker.closed(r.Request)
		}
	}
}

// outcome is how OCSF calls a verdict.
type outcome struct{ activity, action, disposition, severity, status int }

var outcomes = map[control.Verdict]outcome{
	control.Allow:  {audit.ActivityOpen, 1, audit.Allowed, audit.Informational, 1},
	control.Refuse: {audit.ActivityRefuse, 2, audit.Blocked, audit.Low, 2},
	control.End:    {audit.ActivityClose, 1, audit.Allowed, audit.Informational, 1},
	control.Cut:    {audit.ActivityReset, 2, audit.AccessRevoked, audit.Low, 2},
	control.Hold:   {audit.ActivityOther, 2, audit.Delayed, audit.Low, 1},
	control.Fail:   {audit.ActivityFail, 1, audit.Errored, audit.Informational, 2},
}

// network makes the line of a record. A verdict that is none is written as a
// refusal would be: a worker that says such things is not to be trusted.
func network(id string, r *control.Record) *audit.Network {
	o, ok := outcomes[r.Verdict]
	if !ok {
		o = outcome{audit.ActivityRefuse, 2, audit.Blocked, audit.High, 2}
	}
	n := audit.NewNetwork(id, o.activity)
	n.ActionID, n.DispositionID, n.SeverityID, n.StatusID = o.action, o.disposition, o.severity, o.status
	if r.Verdict == control.Allow && r.Would != "" {
		n.DispositionID, n.SeverityID = audit.Logged, audit.Low
	}
	n.Metadata.UID = clip(r.Request, maxHost)
	n.Actor = actor(r.Process)
	unsure := ""
	if r.Process != nil {
		unsure = r.Process.Unsure
	}
	n.Src = endpoint("", r.Src, 0)
	n.Dst = endpoint(clip(r.Host, maxHost), r.Addr, r.Port)
	switch {
	case r.Proto == "dns" && n.Dst != nil && n.Dst.Hostname == "" && n.Dst.IP == "": // what was asked for is no name
		n.Dst.SvcName = "dns"
	case n.Src == nil && n.Dst == nil: // of many, or lost
		n.Src = &audit.Endpoint{UID: id}
	}
	n.Connection = connection(r)
	if r.Rule != "" {
		n.Rule = &audit.Rule{Name: clip(r.Rule, maxText)}
	}
	if r.Sent != 0 || r.Got != 0 {
		n.Traffic = &audit.Traffic{In: r.Got, Out: r.Sent}
	}
	n.Duration = r.Lasted.Milliseconds()
	n.Count = r.Count
	n.Unmapped = audit.NetworkMore{
		Verdict:    clip(string(r.Verdict), maxHost),
		Reason:     clip(r.Reason, maxHost),
		Would:      clip(r.Would, maxHost),
		Detail:     clip(r.Detail, maxText),
		Method:     clip(r.Method, maxHost),
		Generation: r.Generation,
		Unsure:     unsure,
	}
	return n
}

// endpoint is one end of a connection. What a program dialed by address has no
// host name, even if the worker calls the address so.
func endpoint(host string, addr netip.AddrPort, port uint16) *audit.Endpoint {
	e := &audit.Endpoint{Hostname: host, Port: port}
	if _, err := netip.ParseAddr(host); err == nil {
		e.Hostname, e.IP = "", host
	}
	if addr.IsValid() {
		e.IP = addr.Addr().String()
		if port == 0 {
			e.Port = addr.Port()
		}
	}
	if *e == (audit.Endpoint{}) {
		return nil
	}
	return e
}

// connection is the protocol; the words above TCP and UDP stand as its name.
func connection(r *control.Record) *audit.Connection {
	number, known := transport(r)
	if !known {
		number = audit.OtherProtocol
	}
	return &audit.Connection{ProtocolName: cmp.Or(clip(r.Proto, maxHost), "unknown"), ProtocolNum: number, DirectionID: audit.Outbound}
}

func actor(p *control.Process) *audit.Actor {
	if p == nil {
		return nil
	}
	a := &audit.Actor{Process: audit.Process{
		PID:  p.PID,
		Name: clip(p.Name, maxHost),
		User: &audit.User{UID: strconv.FormatUint(uint64(p.UID), 10)},
	}}
	if p.Container != "" {
		a.Process.Container = &audit.Container{UID: clip(p.Container, maxHost)}
	}
	if p.Exe != "" {
		a.Process.File = audit.NewFile(clip(p.Exe, maxText))
	}
	for _, exe := range p.Ancestors[:min(len(p.Ancestors), maxKin)] {
		a.Process.Ancestry = append(a.Process.Ancestry, audit.Ancestor{Path: clip(exe, maxHost)})
	}
	return a
}

// clip cuts s to at most n bytes, between runes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
