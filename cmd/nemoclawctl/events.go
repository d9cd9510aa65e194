package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// newcomers is how often events looks for sandboxes that have begun.
const newcomers = time.Second

var eventsCommand = &cli.Command{
	Name:      "events",
	Usage:     "follow what is refused, waits and is decided, in one sandbox or in all",
	ArgsUsage: "[ID]",
	Description: `Without ID sandboxes that begin later are followed too. With --json each line is
the audit log's, for programs. Who reads too slowly holds nothing up: he is left
behind, and goes on from where he was. Lines that are not kept any more by then
are said on the standard error. With --after a program goes on from the last line
that it has seen, by its metadata.sequence.`,
	Flags: []cli.Flag{jsonFlag,
		&cli.Uint64Flag{Name: "after", Usage: "begin behind line `SEQ` of the sandbox's log"},
		&cli.BoolFlag{Name: "begin", Usage: "begin with what happened before"},
		&cli.BoolFlag{Name: "connections", Usage: "allowed connections and their ends as well"},
	},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 1); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		f := follower{
			w: c.App.Writer, gaps: c.App.ErrWriter, json: c.Bool("json"), begun: c.Bool("begin"), all: c.Bool("connections"),
			stop: stop, seen: map[string]bool{}, last: map[string]progress{},
		}
		id := c.Args().First()
		if id == "" && c.IsSet("after") {
			return usageError{errors.New("cannot begin behind a line of every log: --after needs an ID")}
		}
		if id == "" {
			return f.followAll(ctx)
		}
		s, err := find(id)
		if err != nil {
			return err
		}
		if c.IsSet("after") {
			f.last[s.dir] = progress{line: c.Uint64("after")}
		}
		return f.followToEnd(ctx, s)
	},
}

// follower prints the lines of several sandboxes, each whole.
type follower struct {
	w     io.Writer
	gaps  io.Writer // where is said what is missing
	json  bool
	begun bool   // also what was before
	all   bool   // also what is as it should be
	stop  func() // when nobody reads any more

	mu   sync.Mutex
	err  error
	seen map[string]bool // state directories; true: followed now
	last map[string]progress
	wg   sync.WaitGroup
}

// progress is how far a sandbox was followed.
type progress struct {
	line  uint64 // number of the last one that came
	ended bool   // it was the sandbox's last
}

// followAll follows every sandbox until ctx is done.
func (f *follower) followAll(ctx context.Context) error {
	tick := time.NewTicker(newcomers)
	defer tick.Stop()
	for later := false; ; later = true {
		sandboxes, err := all()
		if err != nil {
			return err
		}
		for _, s := range sandboxes {
			f.begin(ctx, s, later)
		}
		select {
		case <-ctx.Done():
			f.wg.Wait()
			return f.err
		case <-tick.C:
		}
	}
}

// begin follows a sandbox that is not followed yet. One that cannot be reached is
// tried again.
func (f *follower) begin(ctx context.Context, s *sandbox, later bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	following, known := f.seen[s.dir]
	if following {
		return
	}
	f.seen[s.dir] = true
	f.wg.Go(func() {
		_ = f.follow(ctx, s, later && !known)
		f.mu.Lock()
		f.seen[s.dir] = false
		f.mu.Unlock()
	})
}

// followToEnd follows one sandbox until it ends, or its gateway is lost.
func (f *follower) followToEnd(ctx context.Context, s *sandbox) error {
	tick := time.NewTicker(newcomers)
	defer tick.Stop()
	for {
		if err := f.follow(ctx, s, false); err != nil || f.ended(s) {
			return err
		}
		select {
		case <-ctx.Done():
			return f.err
		case <-tick.C:
		}
	}
}

func (f *follower) ended(s *sandbox) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last[s.dir].ended
}

// follow prints what happens to a sandbox from now on, or since the last line
// that came of it.
func (f *follower) follow(ctx context.Context, s *sandbox, fromStart bool) error {
	var st control.Status
	if err := s.call("GET", "/v1/status", nil, &st); err != nil {
		return err
	}
	f.mu.Lock()
	p, resumed := f.last[s.dir]
	if !resumed {
		if !fromStart && !f.begun { // else it has begun since we did
			p.line = st.AuditLines
		}
		f.last[s.dir] = p
	}
	f.mu.Unlock()
	// Whoever reads too slowly is cut off in the middle of a line, and goes on.
	err := s.followLog(ctx, p.line, func(line []byte) error { return f.line(s, line) })
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func (f *follower) line(s *sandbox, line []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count(s, line)
	if !f.all && passing(line) {
		return nil
	}
	var err error
	if f.json {
		err = showRaw(f.w, line)
	} else {
		_, err = fmt.Fprintf(f.w, "%s  ", short(s.ID))
		if err == nil {
			err = showText(f.w, line)
		}
	}
	if err != nil {
		f.err = err
		f.stop()
	}
	return err
}

// count notices what is missing between a line and the one before it.
func (f *follower) count(s *sandbox, line []byte) {
	var c audit.Change
	if json.Unmarshal(line, &c) != nil {
		return
	}
	last, n := f.last[s.dir].line, c.Metadata.Sequence
	if last > 0 && n > last+1 {
		fmt.Fprintf(f.gaps, "nemoclawctl: %s: lines %d to %d are not kept any more\n", short(s.ID), last+1, n-1)
	}
	f.last[s.dir] = progress{line: n, ended: c.Unmapped.Kind == audit.KindEnd}
}

// passing tells whether a line is about a connection as it should be.
func passing(line []byte) bool {
	var n audit.Network
	if json.Unmarshal(line, &n) != nil || n.ClassUID != 4001 {
		return false
	}
	switch control.Verdict(n.Unmapped.Verdict) {
	case control.Allow, control.End, control.Fail:
		return n.Unmapped.Would == ""
	}
	return false
}
