// Command demo shows what nemoclaw does: it runs an agent in a sandbox, has it
// try what agents should and should not do, and prints what came of each
// attempt and which layer answered. The programs that it shows are those beside
// it; everything they need, an internet included, it makes for itself, and
// nothing of that is left when it ends.
//
// What it prints was measured. A line that came out otherwise than it should is
// marked, and the exit status is then not 0.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // a line came out otherwise than it should
	exitCannot = 2 // the demo could not be held
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		fmt.Fprintln(stderr, "demo: cannot use arguments: there are none")
		return exitCannot
	}
	// The first signal ends the demo in order; a second one ends it.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	defer stop()

	begin := time.Now()
	p := newPage(stdout)
	if err := show(ctx, p); err != nil {
		fmt.Fprintf(stderr, "demo: cannot go on: %v\n", err)
		return exitCannot
	}
	p.close(time.Since(begin))
	if p.deviations > 0 {
		return exitFailed
	}
	return exitOK
}

// show is the demo from its stage to the sweeping up.
func show(ctx context.Context, p *page) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	if err := examine(ctx, filepath.Join(bin, "nemoclaw")); err != nil {
		return err
	}
	s, err := newStage(bin)
	if err != nil {
		return errors.Join(err, s.close())
	}
	if s.box, err = s.start(); err == nil {
		if err = play(ctx, p, s); ctx.Err() != nil {
			err = errors.New("it was interrupted")
		}
	}
	if cerr := s.close(); cerr != nil || err != nil {
		return errors.Join(err, cerr)
	}
	sweep(p, s)
	return nil
}

// examine asks nemoclaw whether this machine can run it, and says what is
// missing if not. It changes nothing.
func examine(ctx context.Context, nemoclaw string) error {
	out, err := exec.CommandContext(ctx, nemoclaw, "doctor", "--json").Output()
	var found []struct {
		Need, Answer, Detail, Follows string
		Must                          bool
	}
	if jerr := json.Unmarshal(out, &found); jerr != nil {
		return fmt.Errorf("nemoclaw doctor gave no answer: %w", errors.Join(err, jerr))
	}
	var missing []error
	for _, f := range found {
		if f.Must && f.Answer != "yes" {
			missing = append(missing, fmt.Errorf("  %s: %s, %s\n    => %s", f.Need, f.Answer, f.Detail, f.Follows))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks what nemoclaw needs; nothing was changed\n%w", errors.Join(missing...))
	}
	return err
}
