package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/audit"
	"nemoclaw/specs/policy"
)

var policyCommand = &cli.Command{
	Name:  "policy",
	Usage: "ask a policy file what it would decide",
	Subcommands: []*cli.Command{{
		Name:      "explain",
		Usage:     "tell what a policy says about a host and port, and by which rule",
		ArgsUsage: "[--binary PATH] FILE HOST:PORT",
		Flags:     []cli.Flag{jsonFlag, &cli.StringFlag{Name: "binary", Usage: "the executable at `PATH` in the container asks"}},
		Action:    explain,
	}, {
		Name:      "test",
		Usage:     "tell what a policy would have decided of what an audit log recorded",
		ArgsUsage: "FILE AUDIT.jsonl",
		Description: `Each decision of the log is put to the policy in FILE, with its time, host, port
and executable. What differs is shown, once for each host, port and executable.
The exit status is 1 if something that was allowed, by a rule or by an operator,
would be refused.`,
		Flags:  []cli.Flag{jsonFlag},
		Action: testPolicy,
	}},
	Action: noCommand,
}

// readPolicy reads a file, shows what is hardly meant in it, and has the time of
// its rules begin.
func readPolicy(c *cli.Context, file string, now time.Time) (*policy.Policy, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy: %w", err)
	}
	p, err := policy.Parse(file, src)
	if err != nil {
		return nil, fmt.Errorf("cannot use the policy:\n%w", err)
	}
	for _, w := range p.Warnings(src, now) {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", printable(w.Error()))
	}
	p.Begin(now, nil)
	return p, nil
}

// explained is what explain says.
type explained struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"`
	Would   string `json:"would,omitempty"` // refused for this, were it enforced
	Rule    string `json:"rule,omitempty"`  // file:line
	Steps   []step `json:"steps"`
}

// step is a rule that was looked at.
type step struct {
	Where   string `json:"where"`
	Kind    string `json:"kind"` // allow or deny
	Target  string `json:"target"`
	Options string `json:"options,omitempty"`
	Why     string `json:"why"`
}

func explain(c *cli.Context) error {
	if err := wants(c, 2, 2); err != nil {
		return err
	}
	host, port, err := hostPort(c.Args().Get(1))
	if err != nil {
		return usageError{err}
	}
	p, err := readPolicy(c, c.Args().First(), time.Now())
	if err != nil {
		return err
	}
	v, steps := p.Explain(host, port, policy.Owner{Exe: c.String("binary")}, time.Now())
	e := explained{Allowed: v.Allow, Reason: string(v.Reason), Would: string(v.Would), Steps: []step{}}
	if v.Rule != nil {
		e.Rule = p.Where(v.Rule)
	}
	for _, s := range steps {
		kind := "allow"
		if s.Deny {
			kind = "deny"
		}
		e.Steps = append(e.Steps, step{p.Where(s.Rule), kind, s.Rule.String(), s.Rule.Options(), s.Why})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, e)
	}
	return e.print(c.App.Writer, join(host, port))
}

func (e *explained) print(w io.Writer, what string) error {
	verdict := "is refused: " + e.Reason
	if e.Allowed {
		verdict = "is allowed"
	}
	if e.Would != "" {
		verdict += ", and would be refused if it were enforced: " + e.Would
	}
	fmt.Fprintf(w, "%s %s\n", cell(what), verdict)
	rows := [][]string{}
	for _, s := range e.Steps {
		target := s.Target
		if s.Options != "" {
			target += " (" + s.Options + ")"
		}
		rows = append(rows, []string{"  " + s.Where, s.Kind, target, s.Why})
	}
	if len(rows) == 0 {
		rows = append(rows, []string{"  no rule names it"})
	}
	return table(w, rows)
}

// difference is one host, port and executable of which the policy thinks
// otherwise than the log.
type difference struct {
	Host   string    `json:"host"`
	Port   uint16    `json:"port"`
	Exe    string    `json:"exe,omitempty"`
	Was    string    `json:"was"`  // allowed, by which rule; or refused, and why
	Would  string    `json:"then"` // the same, by the policy
	Lost   bool      `json:"lost"` // it was allowed and would be refused
	Times  int       `json:"times"`
	First  time.Time `json:"first"`
	Latest time.Time `json:"last"`
}

// tested is what a policy makes of a log.
type tested struct {
	Decisions   int           `json:"decisions"`
	Same        int           `json:"same"`
	Lost        int           `json:"lost"`   // allowed, would be refused
	Gained      int           `json:"gained"` // refused, would be allowed
	Differences []*difference `json:"differences"`
}

func testPolicy(c *cli.Context) error {
	if err := wants(c, 2, 2); err != nil {
		return err
	}
	p, err := readPolicy(c, c.Args().First(), time.Now())
	if err != nil {
		return err
	}
	f, err := os.Open(c.Args().Get(1))
	if err != nil {
		return fmt.Errorf("cannot read the audit log: %w", err)
	}
	defer f.Close()
	t := tested{Differences: []*difference{}}
	seen := map[difference]*difference{}
	if err := eachLine(f, func(line []byte) error { return t.replay(p, line, seen) }); err != nil {
		return err
	}
	slices.SortStableFunc(t.Differences, func(a, b *difference) int {
		return cmp.Or(bool2int(b.Lost)-bool2int(a.Lost), cmp.Compare(b.Times, a.Times))
	})
	if c.Bool("json") {
		err = printJSON(c.App.Writer, t)
	} else {
		err = t.print(c.App.Writer)
	}
	if err == nil && t.Lost > 0 {
		return fmt.Errorf("cannot go on as before with this policy: it would refuse %d connections that were allowed", t.Lost)
	}
	return err
}

func bool2int(b bool) int {
	if b {
		return 1
	}
	return 0
}

// replay puts one line to the policy. Lines that are no decisions, those about
// connections from outside, and refusals that no rule has a say in, say nothing
// about it.
func (t *tested) replay(p *policy.Policy, line []byte, seen map[difference]*difference) error {
	var base audit.Base
	if json.Unmarshal(line, &base) != nil || base.ClassUID != 4001 {
		return nil
	}
	var n audit.Network
	if err := json.Unmarshal(line, &n); err != nil || n.Dst == nil || n.Dst.Port == 0 || isInbound(&n) {
		return nil
	}
	allowed := n.Unmapped.Verdict == "allow" && n.Unmapped.Would == ""
	if !allowed && !byRule(&n) {
		return nil
	}
	at := time.UnixMilli(n.Time)
	var by policy.Owner
	if n.Actor != nil && n.Actor.Process.File != nil {
		by.Exe = n.Actor.Process.File.Path
	}
	v := judge(p, n.Dst, by, at)
	times := max(n.Count, 1)
	t.Decisions += times
	then := v.Allow && v.Would == ""
	if then == allowed {
		t.Same += times
		return nil
	}
	d := difference{Host: cmp.Or(n.Dst.Hostname, n.Dst.IP), Port: n.Dst.Port, Exe: by.Exe, Lost: allowed, Was: was(&n), Would: "refused: " + string(cmp.Or(v.Reason, v.Would))}
	if then {
		d.Would = "allowed by " + p.Where(v.Rule)
		t.Gained += times
	} else {
		t.Lost += times
	}
	if seen[d] == nil {
		kept := d
		kept.First = at
		seen[d] = &kept
		t.Differences = append(t.Differences, &kept)
	}
	seen[d].Times += times
	seen[d].Latest = at
	return nil
}

// byRule tells whether a line is a decision that was, or could have been, a
// rule's.
func byRule(n *audit.Network) bool {
	switch n.Unmapped.Verdict {
	case "allow":
		return true
	case "refuse":
		switch policy.Reason(n.Unmapped.Reason) {
		case policy.NotListed, policy.DirectAddress, policy.Denied, policy.WrongProgram:
			return true
		}
	}
	return false
}

func judge(p *policy.Policy, to *audit.Endpoint, by policy.Owner, at time.Time) policy.Verdict {
	p.Begin(at, nil) // how old a rule with a ttl was then is not in the log
	if to.Hostname == "" {
		addr, err := netip.ParseAddr(to.IP)
		if err != nil {
			return policy.Verdict{Reason: policy.BadName}
		}
		return p.DecideAddr(addr, to.Port, by, at)
	}
	return p.Decide(to.Hostname, to.Port, by, at)
}

func was(n *audit.Network) string {
	if n.Unmapped.Verdict == "allow" && n.Unmapped.Would == "" && n.Rule != nil {
		return "allowed by " + n.Rule.Name
	}
	return "refused: " + cmp.Or(n.Unmapped.Would, n.Unmapped.Reason)
}

func (t *tested) print(w io.Writer) error {
	fmt.Fprintf(w, "%d decisions: %d as they were, %d allowed that would be refused, %d refused that would be allowed\n", t.Decisions, t.Same, t.Lost, t.Gained)
	rows := [][]string{}
	for _, d := range t.Differences {
		rows = append(rows, []string{"  " + join(d.Host, d.Port), cmp.Or(d.Exe, "-"), strconv.Itoa(d.Times) + " times", "was " + d.Was, "would be " + d.Would, d.Latest.UTC().Format(time.RFC3339)})
	}
	return table(w, rows)
}
