package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
)

var grantsCommand = &cli.Command{
	Name:      "grants",
	Usage:     "show what operators have decided for sandboxes that run",
	ArgsUsage: "[ID]",
	Flags:     []cli.Flag{jsonFlag},
	Action: func(c *cli.Context) error {
		list := []given{}
		err := eachGateway(c, func(s *sandbox) error {
			var grants []control.Grant
			err := s.call("GET", "/v1/grants", nil, &grants)
			for _, g := range grants {
				list = append(list, given{s.ID, g})
			}
			return err
		})
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, list)
		}
		rows := [][]string{{"SANDBOX", "#", "HOST", "PORT", "VERDICT", "HOLDS", "GIVEN", "BY"}}
		for _, g := range list {
			verdict := "deny"
			if g.Allow {
				verdict = "allow"
			}
			rows = append(rows, []string{short(g.Sandbox), strconv.FormatUint(g.ID, 10), g.Host, strconv.Itoa(int(g.Port)), verdict, bounds(g.Grant), ago(g.Since), g.By})
		}
		return table(c.App.Writer, rows)
	},
}

// given is a Grant and whose it is.
type given struct {
	Sandbox string `json:"sandbox"`
	control.Grant
}

var revokeCommand = &cli.Command{
	Name:        "revoke",
	Usage:       "take back what was decided for a sandbox; connections that it let through are cut",
	ArgsUsage:   "ID WHAT...",
	Description: "WHAT is HOST:PORT, or the number that grants shows.",
	Flags:       []cli.Flag{jsonFlag},
	Action: func(c *cli.Context) error {
		if err := wants(c, 2, 1000); err != nil {
			return err
		}
		var decisions []control.Decision
		for _, w := range c.Args().Tail() {
			d := control.Decision{Verb: "revoke"}
			n, err := strconv.ParseUint(w, 10, 64)
			if d.Grant = n; err != nil || n == 0 {
				if d.Host, d.Port, err = hostPort(w); err != nil {
					return usageError{err}
				}
			}
			decisions = append(decisions, d)
		}
		s, err := find(c.Args().First())
		if err != nil {
			return err
		}
		done := make([]control.Decided, len(decisions))
		for i, d := range decisions {
			if err := s.call("POST", "/v1/decisions", d, &done[i]); err != nil {
				return hinted{err, "nemoclawctl grants " + short(s.ID) + " shows what there is"}
			}
			if !c.Bool("json") {
				fmt.Fprintf(c.App.Writer, "%s: %s is no longer decided; %d connections were cut\n", short(s.ID), cell(join(done[i].Grant.Host, done[i].Grant.Port)), done[i].Cut)
			}
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, done)
		}
		return nil
	},
}

var metricsCommand = &cli.Command{
	Name:      "metrics",
	Usage:     "print a sandbox's counters in Prometheus' text format",
	ArgsUsage: "ID",
	Action: func(c *cli.Context) error {
		if err := wants(c, 1, 1); err != nil {
			return err
		}
		s, err := find(c.Args().First())
		if err != nil {
			return err
		}
		text, err := s.text("/metrics")
		if err == nil {
			_, err = fmt.Fprint(c.App.Writer, printable(strings.TrimRight(text, "\n"))+"\n")
		}
		return err
	},
}
