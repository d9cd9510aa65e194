package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
	"nemoclaw/hooks/proof"
)

var statusCommand = &cli.Command{
	Name:      "status",
	Usage:     "prove what is in force in a sandbox, or in all of them",
	ArgsUsage: "[ID]",
	Description: `Each layer is looked at now and from outside: what was asked, what is active
and how that was verified. The exit status is 3 if a layer is weaker than asked.`,
	Flags:  []cli.Flag{jsonFlag},
	Action: status,
}

// weakError ends in exitWeaker.
type weakError struct{ error }

func (w weakError) Unwrap() error { return w.error }

// proven is a sandbox with the proof of its layers.
type proven struct {
	*control.Status                 // nil if its gateway does not answer
	ID              string          `json:"id"`
	State           string          `json:"state"`
	Confined        json.RawMessage `json:"confined,omitempty"`
	Proof           *proof.Report   `json:"proof"`
	sandbox         *sandbox
}

func status(c *cli.Context) error {
	if err := wants(c, 0, 1); err != nil {
		return err
	}
	sandboxes, err := chosen(c.Args().First())
	if err != nil {
		return err
	}
	list := []*proven{}
	if len(sandboxes) > 0 {
		p := prover(sandboxes[0].settings.RunDir)
		defer p.Close()
		for _, s := range sandboxes {
			list = append(list, prove(p, s))
		}
	}
	w := c.App.Writer
	switch named := c.Args().Present(); {
	case c.Bool("json") && named:
		err = printJSON(w, list[0])
	case c.Bool("json"):
		err = printJSON(w, list)
	case named:
		err = printStatus(w, list[0])
	default:
		err = printProofs(w, list)
	}
	if err == nil {
		err = weaker(list)
	}
	if err == nil && !c.Args().Present() {
		if err = unread(); err != nil {
			err = weakError{err}
		}
	}
	return err
}

// prover is one for the sandboxes of a host.
func prover(runDir string) *proof.Prover {
	return &proof.Prover{RunDir: runDir, Ask: func(dir string) (*control.Status, error) {
		s := &sandbox{dir: dir, Sandbox: new(control.Sandbox)}
		st := new(control.Status)
		if err := s.call("GET", "/v1/status", nil, st); err != nil {
			return nil, err
		}
		return st, nil
	}}
}

func prove(p *proof.Prover, s *sandbox) *proven {
	v := &proven{ID: s.ID, State: s.state(), Confined: s.Confined, Proof: p.Prove(s.dir, s.Sandbox), sandbox: s}
	v.Status = v.Proof.Gateway
	return v
}

// weaker is the error that names what is weaker than asked, or nil.
func weaker(list []*proven) error {
	var words []string
	for _, v := range list {
		for _, l := range v.Proof.Layers {
			if l.State == proof.Weaker {
				words = append(words, short(v.ID)+": "+l.Name)
			}
		}
	}
	if len(words) == 0 {
		return nil
	}
	return weakError{fmt.Errorf("cannot vouch for every layer: weaker than asked: %s", strings.Join(words, ", "))}
}

// printStatus shows what the gateway says, and then each layer.
func printStatus(w io.Writer, v *proven) error {
	s := v.sandbox
	rows := [][]string{
		{"id:", s.ID},
		{"state:", v.State},
		{"policy:", policyText(s.PolicyName, s.PolicyFile)},
		{"audit log:", s.AuditLog},
	}
	notes := storedNotes(s)
	if st := v.Status; st != nil {
		for _, a := range alarms(st) {
			fmt.Fprintln(w, loud(w, a))
		}
		if st.ID != s.ID {
			rows = append(rows, []string{"shares:", "the network namespace and the gateway of " + st.ID})
		}
		rows = append(rows,
			[]string{"generation:", fmt.Sprintf("%d (%.12s)", st.Generation, st.Digest)},
			[]string{"gateway:", gatewayText(st)},
			[]string{"uplink:", cmp.Or(strings.Join(st.Links, ", "), "none")},
			[]string{"denials:", denialsText(&st.Denials)},
			[]string{"connections:", fmt.Sprintf("%d open, %d allowed, %d refused", st.Open, st.Allowed, st.Refused)},
		)
		for _, n := range st.Notes { // the gateway was told of create's
			if !slices.Contains(notes, n) && !strings.HasPrefix(n, control.StoredNote) {
				notes = append(notes, n)
			}
		}
	}
	for _, n := range notes {
		rows = append(rows, []string{"note:", n})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if v.Proof.Unconfined {
		fmt.Fprintln(w, "\nThe policy unconfined turns every layer off.")
		return nil
	}
	for _, l := range v.Proof.Layers {
		if err := printLayer(w, l); err != nil {
			return err
		}
	}
	return nil
}

// storedNotes are those of create.
func storedNotes(s *sandbox) []string {
	var stored struct {
		Notes []string `json:"notes"`
	}
	_ = json.Unmarshal(s.Confined, &stored) // the proof tells if it cannot be understood
	return stored.Notes
}

func printLayer(w io.Writer, l proof.Layer) error {
	state := string(l.State)
	if l.State == proof.Weaker {
		state = loud(w, state)
	}
	fmt.Fprintf(w, "\n%s: %s\n", l.Name, state)
	var rows [][]string
	add := func(key string, texts ...string) {
		for _, t := range texts {
			if t != "" {
				rows = append(rows, []string{"  " + key, t})
			}
		}
	}
	add("asked:", l.Asked)
	add("active:", l.Active)
	add("verified:", l.Verified)
	add("WEAKER:", l.Faults...)
	add("not observable:", l.Hidden...)
	return table(w, rows)
}

// printProofs shows one line for each sandbox, and below what is weaker.
func printProofs(w io.Writer, list []*proven) error {
	rows := [][]string{{"ID", "STATE", "LAYERS"}}
	var faults []string
	for _, v := range list {
		rows = append(rows, []string{short(v.ID), v.State, layersText(v.Proof)})
		for _, l := range v.Proof.Layers {
			for _, f := range l.Faults {
				faults = append(faults, fmt.Sprintf("%s: %s: %s", short(v.ID), l.Name, cell(f)))
			}
		}
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, f := range faults {
		fmt.Fprintln(w, loud(w, f))
	}
	return nil
}

// layersText groups the names of layers by their state.
func layersText(r *proof.Report) string {
	if r.Unconfined {
		return "unconfined"
	}
	var words []string
	for _, state := range []proof.State{proof.Weaker, proof.Unseen, proof.NotYet, proof.Ended, proof.Holds} {
		var names []string
		for _, l := range r.Layers {
			if l.State == state {
				names = append(names, l.Name)
			}
		}
		if len(names) == len(r.Layers) {
			return "all: " + string(state)
		}
		if len(names) > 0 {
			words = append(words, string(state)+": "+strings.Join(names, " "))
		}
	}
	return strings.Join(words, "; ")
}
