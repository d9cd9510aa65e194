package proof

import (
	"fmt"
	"slices"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/hooks/witness"
)

// State is how a layer does.
type State string

// The states of a layer.
const (
	Holds  State = "holds"
	Weaker State = "WEAKER THAN ASKED"
	Unseen State = "not observable"
	NotYet State = "not yet" // the container was created and not started
	Ended  State = "ended"   // its first process has ended, and its gateway with it
)

// Layer is what was asked of one layer, what is active, and how that was
// verified, in words.
type Layer struct {
	Name     string `json:"layer"`
	State    State  `json:"state"`
	Asked    string `json:"asked"`
	Active   string `json:"active,omitempty"`
	Verified string `json:"verified,omitempty"`
	// Faults are why it is weaker, and Hidden what could not be observed, each
	// with what would change that.
	Faults []string `json:"faults,omitempty"`
	Hidden []string `json:"hidden,omitempty"`
}

func (l *Layer) fault(format string, args ...any) {
	if f := fmt.Sprintf(format, args...); !slices.Contains(l.Faults, f) {
		l.Faults = append(l.Faults, f)
	}
}

func (l *Layer) hide(format string, args ...any) {
	if h := fmt.Sprintf(format, args...); !slices.Contains(l.Hidden, h) {
		l.Hidden = append(l.Hidden, h)
	}
}

// settle sets the state from what was found.
func (l *Layer) settle() {
	switch {
	case len(l.Faults) > 0:
		l.State = Weaker
	case l.State != "":
	case len(l.Hidden) > 0:
		l.State = Unseen
	default:
		l.State = Holds
	}
}

// Report is the proof of one sandbox.
type Report struct {
	ID         string  `json:"id"`
	Unconfined bool    `json:"unconfined,omitempty"` // nothing was asked
	Layers     []Layer `json:"layers"`

	// Gateway is what it answered; nil if it did not.
	Gateway *control.Status `json:"-"`
}

// Weaker reports whether any layer is weaker than asked.
func (r *Report) Weaker() bool {
	return slices.ContainsFunc(r.Layers, func(l Layer) bool { return l.State == Weaker })
}

// Prover proves sandboxes. Close it.
type Prover struct {
	// RunDir holds the state directories of all sandboxes.
	RunDir string
	// Ask asks the gateway of a state directory.
	Ask func(dir string) (*control.Status, error)
	// Patience is how long a fault may take to pass before it counts. Zero
	// means one second.
	Patience time.Duration

	kernel *witness.Witness
	blind  error // why there is no kernel
	opened bool
}

// Close lets go of the kernel.
func (p *Prover) Close() {
	if p.kernel != nil {
		p.kernel.Close()
	}
}

// look opens the witness once.
func (p *Prover) look() {
	if !p.opened {
		p.opened = true
		p.kernel, p.blind = witness.Open()
	}
}

// again is the pause between two looks at something that may be passing.
const again = 20 * time.Millisecond

// until looks until there is no fault or patience is over.
func (p *Prover) until(look func() []Layer) []Layer {
	patience := p.Patience
	if patience == 0 {
		patience = time.Second
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(again) {
		layers := look()
		fine := true
		for i := range layers {
			layers[i].settle()
			fine = fine && layers[i].State != Weaker
		}
		if fine || time.Now().After(deadline) {
			return layers
		}
	}
}

// Prove proves the sandbox s, whose state directory is dir.
func (p *Prover) Prove(dir string, s *control.Sandbox) *Report {
	r := &Report{ID: s.ID}
	b, err := open(p, dir, s)
	if err != nil {
		l := Layer{Name: "state", Asked: "what create stored"}
		l.fault("%v", err)
		l.settle()
		r.Layers = []Layer{l}
		r.Gateway, _ = p.Ask(dir)
		return r
	}
	defer b.close()
	if b.policy.Unconfined {
		r.Unconfined = true
		r.Gateway, _ = p.Ask(dir) // there is none as a rule
		return r
	}
	p.look()
	r.Layers = slices.Concat(
		p.until(b.processes),
		p.until(b.mounts),
		p.until(b.network),
		p.until(b.gateway),
		p.until(b.files),
	)
	r.Gateway = b.status
	return r
}
