package monitor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// maxWarnings is how many of a policy's are told in Status.
const maxWarnings = 10

// maxPolicy is the size of the largest policy file, in bytes.
const maxPolicy = limits.Policy

// reload puts the policy file into force as it stands. If it is not a policy,
// the old one stays, and the fault is told in Status and in the log: once for
// each content.
func (m *Monitor) reload() (control.Reloaded, error) {
	m.changes.Lock()
	defer m.changes.Unlock()
	file := m.attached.PolicyFile
	if file == "" {
		return control.Reloaded{}, errors.New("cannot reload: the policy is the built-in one")
	}
	src, err := readPolicy(file)
	if err != nil {
		return control.Reloaded{}, m.policyFault(err, err.Error())
	}
	sum := sha256.Sum256(src)
	digest := hex.EncodeToString(sum[:])
	if digest == m.inForce() {
		m.policyFine()
		return control.Reloaded{Generation: m.generation()}, nil
	}
	p, err := policy.ParseReload(file, src)
	if err != nil {
		return control.Reloaded{}, m.policyFault(err, digest)
	}
	return m.adopt(p, src)
}

// readPolicy reads a regular file of at most maxPolicy bytes. O_NONBLOCK keeps
// a FIFO in its place from holding the monitor up.
func readPolicy(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the policy: %s is gone", file)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read the policy: %s is not a file", file)
	}
	src, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy: %w", err)
	}
	if len(src) > maxPolicy {
		return nil, fmt.Errorf("cannot read the policy: %s is larger than %d bytes", file, maxPolicy)
	}
	return src, nil
}

// inForce returns the digest of the policy in force.
func (m *Monitor) inForce() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := sha256.Sum256(m.rules.source)
	return hex.EncodeToString(sum[:])
}

func (m *Monitor) generation() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rules.generation
}

// policyFault keeps the policy in force and says why. what tells one fault
// from another.
func (m *Monitor) policyFault(err error, what string) error {
	m.mu.Lock()
	known := m.rules.faulty == what
	m.rules.fault, m.rules.faulty = err.Error(), what
	if !known {
		m.tally.reloads["fault"]++
	}
	m.mu.Unlock()
	if !known {
		line := m.change(audit.KindFault, "policy generation "+fmt.Sprint(m.generation())+" stays in force: "+err.Error())
		line.SeverityID = audit.High
		line.StatusID = 2
		line.Unmapped.PolicyFile = m.attached.PolicyFile
		_ = m.log.Append(line) // its fault shows in Status
	}
	return err
}

// policyFine says that a fault has gone without another policy.
func (m *Monitor) policyFine() {
	m.mu.Lock()
	was := m.rules.fault
	m.rules.fault, m.rules.faulty = "", ""
	m.mu.Unlock()
	if was != "" {
		_ = m.log.Append(m.change(audit.KindPolicy, "the policy file is again the one in force"))
	}
}

// adopt puts another policy into force and writes down what became of it. The
// caller holds m.changes.
func (m *Monitor) adopt(p *policy.Policy, src []byte) (control.Reloaded, error) {
	m.mu.Lock()
	old, created := m.rules.policy, m.rules.created
	m.mu.Unlock()
	if err := m.ledger.begin(p); err != nil {
		return control.Reloaded{}, m.policyFault(err, err.Error())
	}
	applied, err := m.put(func(r *rules) {
		r.policy, r.source = p, src
		r.fault, r.faulty = "", ""
		r.warnings = warnings(p, src)
		m.pending.prune(p, time.Now())
		m.tally.reloads["changed"]++
	})
	if err != nil {
		m.mu.Lock()
		m.rules.fault = err.Error()
		m.mu.Unlock()
	}
	m.attached.Latest = src
	if kerr := control.WriteAttach(m.Dir, &m.attached); err == nil {
		err = kerr
	}
	generation := m.generation()
	added, removed := compare(ruleSet(old), ruleSet(p))
	text := fmt.Sprintf("policy generation %d: +%d -%d rules, cut %d", generation, added, removed, applied.Cut)
	if err != nil {
		text += ": " + err.Error()
	}
	if p.Egress.Audit {
		text += "; " + notEnforced
	}
	if layers := otherLayers(created, p); len(layers) > 0 {
		text += "; " + strings.Join(layers, ", ") + " changed: takes effect for new containers"
	}
	line := m.change(audit.KindPolicy, text)
	line.Unmapped.Generation = generation
	line.Unmapped.PolicyFile = m.attached.PolicyFile
	line.Unmapped.PolicyDigest = p.Digest
	if lerr := m.log.Append(line); err == nil {
		err = lerr
	}
	return control.Reloaded{Generation: generation, Changed: true, Cut: applied.Cut}, err
}

// notEnforced is what an auditor must know of such a policy.
const notEnforced = "egress.enforce is audit: what no rule allows passes, and is recorded"

// warnings are what is hardly meant in a policy, for Status.
func warnings(p *policy.Policy, src []byte) (notes []string) {
	if p.Egress.Audit {
		notes = append(notes, "policy: "+notEnforced)
	}
	for _, w := range p.Warnings(src, time.Now()) {
		notes = append(notes, "policy: "+clip(w.Error(), maxText))
		if len(notes) == maxWarnings {
			break
		}
	}
	return notes
}

// ruleSet is what a policy allows and denies, wherever it is written.
func ruleSet(p *policy.Policy) map[string]bool {
	set := map[string]bool{}
	for what, list := range map[string][]policy.Rule{"allow": p.Egress.Rules, "deny": p.Egress.Deny} {
		for _, r := range list {
			r.Line = 0
			set[what+text(r)] = true
		}
	}
	return set
}

func compare(old, now map[string]bool) (added, removed int) {
	for r := range now {
		if !old[r] {
			added++
		}
	}
	for r := range old {
		if !now[r] {
			removed++
		}
	}
	return added, removed
}

// otherLayers names the parts of a policy that were read at create and are
// others now.
func otherLayers(created, now *policy.Policy) []string {
	var names []string
	differs := func(name string, a, b any) {
		if text(a) != text(b) {
			names = append(names, name)
		}
	}
	differs("filesystem", unplaced(created.Filesystem), unplaced(now.Filesystem))
	differs("landlock", created.Landlock, now.Landlock)
	differs("seccomp", calls(created.Seccomp), calls(now.Seccomp))
	differs("capabilities", created.Capabilities, now.Capabilities)
	differs("network", created.Network, now.Network)
	return names
}

// unplaced is a Filesystem without the lines it was written on.
func unplaced(f policy.Filesystem) policy.Filesystem {
	paths := func(list []policy.Path) []policy.Path {
		list = append([]policy.Path(nil), list...)
		for i := range list {
			list[i].Line = 0
		}
		return list
	}
	f.ReadOnly, f.ReadWrite = paths(f.ReadOnly), paths(f.ReadWrite)
	return f
}

// calls is a Seccomp without the lines it was written on.
func calls(s policy.Seccomp) (names []string) {
	for _, c := range s.Deny {
		names = append(names, "-"+c.Name)
	}
	for _, c := range s.Allow {
		names = append(names, "+"+c.Name)
	}
	return names
}

// text is one writing for each value: nil and empty lists are the same thing.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%#v", v)
	}
	return strings.ReplaceAll(string(b), ":null", ":[]")
}
