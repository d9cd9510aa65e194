package monitor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// join takes a container in that lives in the namespace too. What it may reach
// is decided by the policy of the container that brought the gateway up, so its
// own must say the same. It takes over files unless it fails.
func (m *Monitor) join(j *control.Join, files []*os.File) error {
	if len(files) < 2 || len(files) > 3 {
		return errors.New("cannot join: the namespace and init were not handed in")
	}
	if err := m.sameNamespace(files[0], j.InitPID); err != nil {
		return err
	}
	if j.Again {
		return m.enter(&member{Box: j.Box, pid: j.InitPID, pidfd: files[1]})
	}
	if j.PolicyFile != "" && j.PolicyFile == m.attached.PolicyFile {
		_, _ = m.reload() // it may have been saved a moment ago; what is not in force differs
	}
	if err := m.sameRules(j); err != nil {
		return err
	}
	line := audit.NewChange(j.ID, audit.KindJoined, "container joined the gateway of "+m.attached.ID)
	line.Unmapped.Root = j.Root
	line.Unmapped.PolicyName = j.PolicyName
	line.Unmapped.PolicyFile = j.PolicyFile
	line.Unmapped.PolicyDigest = digest(j.Policy)
	if err := m.log.Append(line); err != nil {
		return err
	}
	if err := m.noteAll(j.ID, j.Notes); err != nil {
		return err
	}
	new := &member{Box: j.Box, pid: j.InitPID, pidfd: files[1]}
	if len(files) == 3 {
		new.ruleset = files[2]
	}
	if err := m.enter(new); err != nil {
		return err
	}
	files[0].Close()
	return nil
}

// sameNamespace checks that both the file and the process are of the namespace
// that is served here.
func (m *Monitor) sameNamespace(ns *os.File, pid int) error {
	want, err := m.inner.Stat()
	if err != nil {
		return fmt.Errorf("cannot join: cannot identify a network namespace: %w", err)
	}
	named, err := ns.Stat()
	if err != nil {
		return fmt.Errorf("cannot join: cannot identify a network namespace: %w", err)
	}
	lives, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return errors.New("cannot join: init is gone")
	}
	if !os.SameFile(want, named) || !os.SameFile(want, lives) {
		return errors.New("cannot join: this gateway serves another network namespace")
	}
	return nil
}

// sameRules compares what the policies say of egress, as it is in force now,
// and of the network, as it was set up.
func (m *Monitor) sameRules(j *control.Join) error {
	theirs, err := policy.Parse(j.PolicyFile, j.Policy)
	if err != nil {
		return fmt.Errorf("cannot join: %w", err)
	}
	m.mu.Lock()
	current, created := m.rules.policy, m.rules.created
	m.mu.Unlock()
	for _, part := range []struct {
		name        string
		ours, their any
	}{
		{"egress", unlined(current.Egress), unlined(theirs.Egress)},
		{"network", created.Network, theirs.Network},
	} {
		if ours, their := text(part.ours), text(part.their); ours != their {
			return fmt.Errorf("cannot join the gateway of %s: %s of policy %s (sha256 %.12s) is not that of its policy %s (sha256 %.12s), and one namespace has one",
				m.attached.ID, part.name, j.PolicyName, digest([]byte(their)), m.attached.PolicyName, digest([]byte(ours)))
		}
	}
	return nil
}

// unlined is an Egress without the lines it was written on.
func unlined(e policy.Egress) policy.Egress {
	e.Rules, e.Deny = slices.Clone(e.Rules), slices.Clone(e.Deny)
	for _, list := range [][]policy.Rule{e.Rules, e.Deny} {
		for i := range list {
			list[i].Line = 0
		}
	}
	return e
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
