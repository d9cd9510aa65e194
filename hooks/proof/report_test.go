package proof

import (
	"testing"
	"testing/synctest"
	"time"
)

// A fault counts only if it does not pass: a process that is joining is confined
// a moment later.
func TestFaultsMayPass(t *testing.T) {
	for _, c := range []struct {
		what   string
		faulty int // looks that find a fault
		state  State
		looks  int
	}{
		{"nothing is wrong", 0, Holds, 1},
		{"it passes", 3, Holds, 4},
		{"it stays", 1000, Weaker, 11},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &Prover{Patience: 10*again - time.Nanosecond}
				looks := 0
				layers := p.until(func() []Layer {
					l := Layer{Name: "one"}
					if looks++; looks <= c.faulty {
						l.fault("something")
					}
					return []Layer{l}
				})
				if layers[0].State != c.state || looks != c.looks {
					t.Errorf("%s after %d looks, want %s after %d", layers[0].State, looks, c.state, c.looks)
				}
			})
		})
	}
}

// The worst that was found is the state; what could not be seen is not a fault.
func TestStateOfALayer(t *testing.T) {
	for _, c := range []struct {
		layer Layer
		want  State
	}{
		{Layer{}, Holds},
		{Layer{Hidden: []string{"something"}}, Unseen},
		{Layer{Hidden: []string{"something"}, Faults: []string{"something"}}, Weaker},
		{Layer{State: NotYet}, NotYet},
		{Layer{State: NotYet, Faults: []string{"something"}}, Weaker},
		{Layer{State: Ended, Hidden: []string{"something"}}, Ended},
	} {
		c.layer.settle()
		if c.layer.State != c.want {
			t.Errorf("%+v, want %s", c.layer, c.want)
		}
	}
	r := &Report{Layers: []Layer{{State: Holds}, {State: Unseen}}}
	if r.Weaker() {
		t.Error("what is not observable is called weaker")
	}
	if r.Layers = append(r.Layers, Layer{State: Weaker}); !r.Weaker() {
		t.Error("a weaker layer is not seen among others")
	}
}
