package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"nemoclaw/egress/control"
	"nemoclaw/hooks"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// unconfined is the name of the policy that turns every layer off.
const unconfined = "unconfined"

// asked is what create stored of layers 1 and 2: runtime's confined.
type asked struct {
	ABI          int                `json:"landlock_abi"`
	Granted      []landlock.Granted `json:"granted"`
	Writable     []string           `json:"writable"`
	First        []byte             `json:"first"` // empty: the engine's, which it does not store
	Filter       []byte             `json:"filter"`
	Scopes       uint64             `json:"scopes"`
	Capabilities []string           `json:"capabilities"`
	Carves       []carve            `json:"carves"`
}

// box is one sandbox while it is looked at.
type box struct {
	*control.Sandbox
	prover *Prover
	dir    string
	asked  asked
	policy *policy.Policy // as it was read at create
	life   State          // Holds while it runs, NotYet or Ended
	inner  *os.File       // the network namespace of init; nil if it has ended
	uplink *os.File       // the pinned one; nil if there is none
	status *control.Status
}

func open(p *Prover, dir string, s *control.Sandbox) (*box, error) {
	b := &box{Sandbox: s, prover: p, dir: dir, life: Holds}
	if s.PolicyName == unconfined {
		b.policy = policy.Unconfined()
		return b, nil
	}
	var err error
	if b.policy, err = policy.Parse(s.PolicyFile, []byte(s.Policy)); err != nil {
		return nil, fmt.Errorf("the policy that was read at create does not parse: %w", err)
	}
	if err := json.Unmarshal(s.Confined, &b.asked); err != nil {
		return nil, fmt.Errorf("cannot understand what create stored: %w", err)
	}
	if s.Status != "started" {
		b.life = NotYet
	}
	inner, err := hooks.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", s.InitPID))
	// Asked behind the open: by now another process may have the pid.
	if start, serr := control.StartTime(s.InitPID); err != nil || serr != nil || start != s.InitStart {
		b.life = Ended
		if err == nil {
			inner.Close()
		}
		return b, nil
	}
	b.inner = inner
	if b.uplink, err = hooks.OpenNetns(filepath.Join(control.Gateway(dir), control.UplinkPin)); errors.Is(err, os.ErrNotExist) {
		b.uplink = nil
	}
	return b, nil
}

func (b *box) close() {
	for _, f := range []*os.File{b.inner, b.uplink} {
		if f != nil {
			f.Close()
		}
	}
}

// layer begins a layer whose state follows from the container's life.
func (b *box) layer(name, asked string) Layer {
	l := Layer{Name: name, Asked: asked}
	if b.life != Holds {
		l.State = b.life
	}
	return l
}
