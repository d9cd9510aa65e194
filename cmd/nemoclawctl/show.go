package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
)

// row is a sandbox as list shows it.
type row struct {
	ID      string          `json:"id"`
	Root    string          `json:"root"`
	State   string          `json:"state"` // created, running or stopped
	Created time.Time       `json:"created"`
	Policy  string          `json:"policy"`
	Gateway string          `json:"gateway"` // up or down
	Status  *control.Status `json:"status,omitempty"`
	Pending int             `json:"pending"`
}

var listCommand = &cli.Command{
	Name:  "list",
	Usage: "list the sandboxes of this host",
	Flags: []cli.Flag{jsonFlag},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 0); err != nil {
			return err
		}
		sandboxes, err := all()
		if err != nil {
			return err
		}
		rows := []row{}
		for _, s := range sandboxes {
			rows = append(rows, s.row())
		}
		if c.Bool("json") {
			err = printJSON(c.App.Writer, rows)
		} else {
			err = printRows(c.App.Writer, rows)
		}
		return cmp.Or(err, unread())
	},
}

// row asks the sandbox's gateway for what only it knows.
func (s *sandbox) row() row {
	r := row{ID: s.ID, Root: s.Root, State: s.state(), Created: s.Created, Policy: s.PolicyName, Gateway: "down"}
	var st control.Status
	if s.call("GET", "/v1/status", nil, &st) == nil {
		r.Gateway, r.Status = "up", &st
		var p []control.Pending
		_ = s.call("GET", "/v1/pending", nil, &p) // it has just answered
		r.Pending = len(p)
	}
	return r
}

// state is what is stored, corrected by what the kernel says.
func (s *sandbox) state() string {
	switch {
	case !s.alive():
		return "stopped"
	case s.Status == "started":
		return "running"
	}
	return s.Status
}

func printRows(w io.Writer, rows []row) error {
	lines := [][]string{{"ID", "STATE", "POLICY", "GATEWAY", "OPEN", "ALLOWED", "REFUSED", "PENDING", "CREATED"}}
	var faults []string
	for _, r := range rows {
		open, allowed, refused := "-", "-", "-"
		if st := r.Status; st != nil {
			open, allowed, refused = strconv.Itoa(st.Open), strconv.FormatUint(st.Allowed, 10), strconv.FormatUint(st.Refused, 10)
			faults = append(faults, alarms(st)...)
		}
		gateway := r.Gateway
		if r.Status != nil && r.Status.ID != r.ID {
			gateway = "behind " + short(r.Status.ID)
		}
		lines = append(lines, []string{short(r.ID), r.State, r.Policy, gateway, open, allowed, refused, strconv.Itoa(r.Pending), ago(r.Created)})
	}
	if err := table(w, lines); err != nil {
		return err
	}
	for _, f := range faults {
		fmt.Fprintln(w, loud(w, f))
	}
	return nil
}

// short is enough of an id to name it; engines' have 64 digits.
func short(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

// alarms are what an operator must not overlook.
func alarms(st *control.Status) (list []string) {
	if st.PolicyFault != "" {
		list = append(list, fmt.Sprintf("%s: THE POLICY FILE IS NOT IN FORCE; generation %d stays:\n%s", short(st.ID), st.Generation, printable(st.PolicyFault)))
	}
	if st.AuditFault != "" {
		list = append(list, fmt.Sprintf("%s: THE AUDIT LOG CANNOT BE WRITTEN; everything is refused:\n%s", short(st.ID), printable(st.AuditFault)))
	}
	if st.AuditDisturbed > 0 {
		list = append(list, fmt.Sprintf("%s: SOMEBODY ELSE HAS CHANGED THE AUDIT LOG, %d times: nemoclawctl status %s; nemoclawctl audit verify %s", short(st.ID), st.AuditDisturbed, short(st.ID), cell(st.AuditLog)))
	}
	return list
}

// denialsText tells which denials of layers 1 and 2 are seen, and how many were.
func denialsText(d *control.Denials) string {
	var words []string
	switch {
	case d.Landlock == d.Seccomp:
		words = append(words, d.Landlock)
	case d.Landlock == control.Observable:
		words = append(words, "landlock's observable; seccomp's "+d.Seccomp)
	case d.Seccomp == control.Observable:
		words = append(words, "seccomp's observable; landlock's "+d.Landlock)
	default:
		words = append(words, "landlock's "+d.Landlock, "seccomp's "+d.Seccomp)
	}
	words = append(words, fmt.Sprintf("%d in the log, %d more counted", d.Recorded, d.Folded))
	if d.Missed > 0 {
		words = append(words, fmt.Sprintf("%d records of this machine found no room", d.Missed))
	}
	if d.Unknown > 0 {
		words = append(words, fmt.Sprintf("%d of processes of this machine that had ended", d.Unknown))
	}
	return strings.Join(words, "; ")
}

func policyText(name, file string) string {
	if file == "" || file == name {
		return name
	}
	return name + " (" + file + ")"
}

func gatewayText(st *control.Status) string {
	worker := "worker " + strconv.Itoa(st.Worker)
	if st.Worker == 0 {
		worker = "a worker starts with the next connection"
	}
	return fmt.Sprintf("monitor %d, %s, %d restarts, since %s", st.Monitor, worker, st.Restarts, st.Since.Format(time.RFC3339))
}

var pendingCommand = &cli.Command{
	Name:      "pending",
	Usage:     "show what was refused and waits for a decision",
	ArgsUsage: "[ID]",
	Flags:     []cli.Flag{jsonFlag},
	Action:    pending,
}

// chosen returns the one sandbox that id names, or all without an id.
func chosen(id string) ([]*sandbox, error) {
	if id == "" {
		return all()
	}
	s, err := find(id)
	return []*sandbox{s}, err
}

// attempt is a Pending and whose it is.
type attempt struct {
	Sandbox string `json:"sandbox"`
	control.Pending
}

func pending(c *cli.Context) error {
	attempts := []attempt{}
	var faults []string
	err := eachGateway(c, func(s *sandbox) error {
		var st control.Status
		var list []control.Pending
		if err := s.call("GET", "/v1/status", nil, &st); err != nil {
			return err
		}
		err := s.call("GET", "/v1/pending", nil, &list)
		faults = append(faults, alarms(&st)...)
		for _, p := range list {
			attempts = append(attempts, attempt{s.ID, p})
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, attempts)
	}
	for _, f := range faults {
		fmt.Fprintln(c.App.Writer, loud(c.App.Writer, f))
	}
	rows := [][]string{{"SANDBOX", "#", "HOST", "PORT", "REASON", "TIMES", "LAST", "WAITS", "REQUEST", "PROCESS"}}
	for _, a := range attempts {
		rows = append(rows, []string{short(a.Sandbox), strconv.FormatUint(a.N, 10), a.Host, strconv.Itoa(int(a.Port)), a.Reason,
			strconv.Itoa(a.Count), ago(a.Last), waits(a.Pending), a.Request, who(a.Process)})
	}
	return table(c.App.Writer, rows)
}

// waits tells how many connections wait for a decision, and for how long yet.
func waits(p control.Pending) string {
	switch {
	case p.Waiting > 0 && p.Until != nil:
		return fmt.Sprintf("%d, %s", p.Waiting, max(0, time.Until(*p.Until)).Round(time.Second))
	case p.Cancelled:
		return "cancelled"
	}
	return "-"
}
