package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/audit"
)

var auditCommand = &cli.Command{
	Name:  "audit",
	Usage: "work with audit logs",
	Subcommands: []*cli.Command{{
		Name:      "verify",
		Usage:     "check that no line of an audit log, its older files included, was changed, removed, added or cut off",
		ArgsUsage: "FILE",
		Flags:     []cli.Flag{jsonFlag},
		Action:    verify,
	}},
	Action: noCommand,
}

func verify(c *cli.Context) error {
	if err := wants(c, 1, 1); err != nil {
		return err
	}
	file := c.Args().First()
	rep, err := audit.VerifyParts(file)
	if err != nil {
		return err
	}
	w := c.App.Writer
	if c.Bool("json") {
		err = printJSON(w, rep)
	} else {
		for _, n := range rep.Notes {
			fmt.Fprintf(w, "%s: note: %s\n", cell(file), cell(n))
		}
		for _, f := range rep.Faults {
			name := file
			if f.File != "" { // an older one, beside it
				name = filepath.Join(filepath.Dir(file), f.File)
			}
			fmt.Fprintf(w, "%s:%d: %s\n", cell(name), f.Line, cell(f.Msg))
		}
		if len(rep.Faults) == 0 {
			fmt.Fprintf(w, "%s: %d lines in %d segments, as they were written\n", cell(file), rep.Lines, rep.Segments)
		}
	}
	if err == nil && len(rep.Faults) > 0 {
		return fmt.Errorf("cannot trust %s: the chain is broken in %d places", file, len(rep.Faults))
	}
	return err
}
