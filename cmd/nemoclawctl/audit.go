package main

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"nemoclaw/egress/audit"
	"nemoclaw/specs/settings"
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
	}, {
		Name:  "prune",
		Usage: "remove the audit logs of sandboxes that have ended",
		Description: `Those that were written to last before --older ago, and of the others the oldest
until all logs of the host together take no more than --total; those of sandboxes
that are there count, and stay.`,
		Flags: []cli.Flag{jsonFlag,
			&cli.DurationFlag{Name: "older", Usage: "remove what nobody has written to for a `TIME`, such as 720h"},
			&cli.StringFlag{Name: "total", Usage: "keep no more than `SIZE` in all, such as 10g"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed"},
		},
		Action: prune,
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

func prune(c *cli.Context) error {
	if err := wants(c, 0, 0); err != nil {
		return err
	}
	total := int64(math.MaxInt64)
	if text := c.String("total"); text != "" {
		var err error
		if total, err = units.RAMInBytes(text); err != nil || total < 0 {
			return usageError{fmt.Errorf("cannot keep %q in all: it is a size such as 500m or 10g", text)}
		}
	}
	if !c.IsSet("older") && !c.IsSet("total") || c.Duration("older") < 0 {
		return hinted{usageError{errors.New("cannot prune audit logs without a bound")}, "nemoclawctl audit prune --older 720h, or --total 10g"}
	}
	sandboxes, err := all()
	if err != nil {
		return err
	}
	set, err := settings.Load()
	if err != nil {
		return err
	}
	logs, err := audit.List(set.LogDir)
	if err != nil {
		return err
	}
	// A gateway that was lost writes no log, and is repaired. Names are enough, since
	// no two sandboxes share one; the directory may have been spelled otherwise then.
	for i := range logs {
		name := filepath.Base(logs[i].File)
		logs[i].Lives = logs[i].Lives || slices.ContainsFunc(sandboxes, func(s *sandbox) bool { return filepath.Base(s.AuditLog) == name })
	}
	var before time.Time
	if c.IsSet("older") {
		before = time.Now().Add(-c.Duration("older"))
	}
	chosen := beyond(logs, before, total)
	for _, log := range chosen {
		if !c.Bool("dry-run") {
			if err := log.Remove(); err != nil {
				return err
			}
		}
		if !c.Bool("json") {
			fmt.Fprintf(c.App.Writer, "%s: %s, written to %s\n", cell(log.File), units.BytesSize(float64(log.Size)), ago(log.Last))
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, chosen)
	}
	return nil
}

// beyond chooses of logs, the oldest first, those that have ended and were last
// written to before a time, and then as many as are beyond a total of bytes.
func beyond(logs []audit.Stored, before time.Time, total int64) []audit.Stored {
	var sum int64
	for _, log := range logs {
		sum += log.Size
	}
	chosen := []audit.Stored{}
	for _, log := range logs {
		if !log.Lives && (log.Last.Before(before) || sum > total) {
			chosen = append(chosen, log)
			sum -= log.Size
		}
	}
	return chosen
}
