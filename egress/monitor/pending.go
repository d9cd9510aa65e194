package monitor

import (
	"slices"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// maxPending is how many undecided hosts and ports are kept; the one that was
// tried longest ago makes room.
const maxPending = 500

// pendings are refused hosts and ports that an operator could approve, the
// latest last.
type pendings struct{ list []control.Pending }

// approvable are the reasons that an approval takes away. The others are a
// deny rule, a forbidden address or a fault of the program's.
func approvable(reason string) bool {
	switch policy.Reason(reason) {
	case policy.NotListed, policy.DirectAddress:
		return true
	}
	return false
}

// add counts a refusal.
func (p *pendings) add(r *control.Record, now time.Time) {
	host, port := target(r)
	if host == "" || port == 0 || !approvable(r.Reason) {
		return
	}
	e := control.Pending{Host: host, Port: port, First: now}
	if i := p.index(host, port); i >= 0 {
		e = p.list[i]
		p.list = slices.Delete(p.list, i, i+1)
	} else if len(p.list) >= maxPending {
		p.list = slices.Delete(p.list, 0, 1)
	}
	e.Reason, e.Request, e.Last = clip(r.Reason, maxHost), clip(r.Request, maxHost), now
	e.Count += max(r.Count, 1)
	if r.Process != nil {
		e.Process = brief(r.Process)
	}
	p.list = append(p.list, e)
}

// brief is what an operator needs to know of a process, in bounds: the list is
// kept, and what is in it comes from the worker.
func brief(p *control.Process) *control.Process {
	b := &control.Process{PID: p.PID, Container: clip(p.Container, maxHost), Name: clip(p.Name, maxHost), Exe: clip(p.Exe, maxText), UID: p.UID, Unsure: clip(p.Unsure, maxText)}
	for _, exe := range p.Ancestors[:min(len(p.Ancestors), maxKin)] {
		b.Ancestors = append(b.Ancestors, clip(exe, maxHost))
	}
	return b
}

// target is what an approval would name: the host, or the address of a
// connection that was made without a name.
func target(r *control.Record) (string, uint16) {
	if r.Host == "" && r.Addr.IsValid() {
		return r.Addr.Addr().Unmap().String(), r.Addr.Port()
	}
	return clip(r.Host, maxHost), r.Port
}

func (p *pendings) index(host string, port uint16) int {
	return slices.IndexFunc(p.list, func(e control.Pending) bool { return e.Host == host && e.Port == port })
}

// remove forgets what has been decided.
func (p *pendings) remove(host string, port uint16) {
	if i := p.index(host, port); i >= 0 {
		p.list = slices.Delete(p.list, i, i+1)
	}
}

// prune forgets what the policy now decides, either way.
func (p *pendings) prune(pol *policy.Policy, now time.Time) {
	p.list = slices.DeleteFunc(p.list, func(e control.Pending) bool {
		return !approvable(string(judge(pol, e.Host, e.Port, now).Reason))
	})
}
