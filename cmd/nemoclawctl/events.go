package main

import (
	"context"
	"encoding/json"
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
	Name:        "events",
	Usage:       "follow what is refused, waits and is decided, in one sandbox or in all",
	ArgsUsage:   "[ID]",
	Description: `Without ID sandboxes that begin later are followed too. With --json each line is the audit log's, for programs.`,
	Flags: []cli.Flag{jsonFlag,
		&cli.BoolFlag{Name: "begin", Usage: "begin with what happened before"},
		&cli.BoolFlag{Name: "connections", Usage: "allowed connections and their ends as well"},
	},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 1); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		f := follower{w: c.App.Writer, json: c.Bool("json"), begun: c.Bool("begin"), all: c.Bool("connections"), stop: stop, seen: map[string]bool{}}
		if id := c.Args().First(); id != "" {
			s, err := find(id)
			if err != nil {
				return err
			}
			return f.follow(ctx, s, false)
		}
		return f.followAll(ctx)
	},
}

// follower prints the lines of several sandboxes, each whole.
type follower struct {
	w     io.Writer
	json  bool
	begun bool   // also what was before
	all   bool   // also what is as it should be
	stop  func() // when nobody reads any more

	mu   sync.Mutex
	err  error
	seen map[string]bool // state directories; true: followed now
	wg   sync.WaitGroup
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

// follow prints what happens to a sandbox from now on.
func (f *follower) follow(ctx context.Context, s *sandbox, fromStart bool) error {
	var st control.Status
	if err := s.call("GET", "/v1/status", nil, &st); err != nil {
		return err
	}
	after := st.AuditLines
	if fromStart || f.begun {
		after = 0 // it has begun since we did
	}
	return s.followLog(ctx, after, func(line []byte) error { return f.line(s, line) })
}

func (f *follower) line(s *sandbox, line []byte) error {
	if !f.all && passing(line) {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
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
