package integration

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A log that goes on in other files stays one to whoever reads, follows and
// verifies it, and a file taken out of the middle is missed.
func TestAuditLogRotates(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	b.settings("audit: {max_size: 65536}\n")
	main := b.up()
	older := func() []string {
		files, _ := filepath.Glob(b.path("log/*.jsonl.[0-9]"))
		return files
	}
	for i := 0; len(older()) < 2; i++ {
		if got := main.ask(fmt.Sprintf("dial h%d.evil.example:443", i)); !strings.Contains(got, "RESET") && !strings.Contains(got, "REFUSED") || i == 2000 {
			t.Fatalf("after %d refusals there are %d older files; the last answered %s", i, len(older()), got)
		}
	}
	file := b.auditFile()
	if r := b.ctl("audit", "verify", file); r.code != 0 {
		t.Errorf("verify: %s", r)
	}
	log := b.ctl("log", b.id)
	for _, want := range []string{"sandbox attached", "h0.evil.example:443", "lie in an older file"} {
		if !strings.Contains(log.stdout, want) {
			t.Errorf("the log does not show %q", want)
		}
	}
	if r := b.ctl("status", b.id); r.code != 0 {
		t.Errorf("status: %s", r)
	}
	b.must(os.Rename(file+".2", b.path("taken")))
	if r := b.ctl("audit", "verify", file); r.code != 1 || !strings.Contains(r.String(), "missing before it, with their file") {
		t.Errorf("verify without a file: %s", r)
	}
	b.must(os.Rename(b.path("taken"), file+".2"))
	b.must(os.Truncate(file+".1", 1000))
	if r := b.ctl("audit", "verify", file); r.code != 1 || !strings.Contains(r.String(), file+".1:") {
		t.Errorf("verify with a file cut off: %s", r)
	}
}

// What somebody else does to the log of a sandbox that runs is said at once, by
// status, metrics and the log itself, and its connections go on; where the log
// cannot be written they do not.
func TestOthersTouchTheLog(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	main.want("ok hello", "dial echo.good.example:7000 hello")
	file := b.auditFile()
	events := b.follow("--json", "--begin", "--connections", b.id)
	for i, c := range []struct {
		words  string
		code   int // of status: 3 where lines are lost
		change func() error
	}{
		{"moved the log to " + file + "-20260101", 0, func() error {
			return errors.Join(os.Rename(file, file+"-20260101"), os.WriteFile(file, nil, 0o600)) // logrotate's create
		}},
		{"cut the log off after 0 of", 3, func() error { return os.Truncate(file, 0) }}, // logrotate's copytruncate
		{"removed the log", 3, func() error { return os.Remove(file) }},
	} {
		b.must(c.change())
		if got := b.ctl("status", b.id); got.code != c.code || !strings.Contains(got.stdout, c.words) || !strings.Contains(got.stdout, "SOMEBODY ELSE HAS CHANGED THE AUDIT LOG") {
			t.Errorf("status after somebody %s: %s", c.words, got)
		}
		if got := b.ctl("metrics", b.id); !strings.Contains(got.stdout, fmt.Sprintf("nemoclaw_audit_disturbed_total{sandbox=%q} %d\n", b.id, i+1)) {
			t.Errorf("metrics: %s", got)
		}
		main.want("ok hello", "dial echo.good.example:7000 hello")
		events.awaitLine(c.words)
		text, err := os.ReadFile(file)
		b.must(err)
		if !strings.Contains(string(text), c.words) || !strings.Contains(string(text), `"verdict":"allow"`) {
			t.Errorf("the log does not go on with what was done: %s", text)
		}
	}
	if got := b.ctl("audit", "verify", file); got.code != 1 || !strings.Contains(got.stdout, "are missing before it") {
		t.Errorf("verify: %s", got)
	}
	b.must(errors.Join(os.Remove(file), os.Mkdir(file, 0o700)))
	main.want("ECONNRESET", "dial echo.good.example:7000 hello")
	if got := b.ctl("status", b.id); !strings.Contains(got.stdout, "THE AUDIT LOG CANNOT BE WRITTEN") {
		t.Errorf("status: %s", got)
	}
	b.must(os.Remove(file))
	main.want("ok hello", "dial echo.good.example:7000 hello")
}

// What has ended is pruned, and what runs is not, its gateway lost or not.
func TestPrune(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	b.up()
	file := b.auditFile()
	old := filepath.Join(filepath.Dir(file), "old.jsonl")
	b.write("log/old.jsonl", "")
	if got := b.ctl("audit", "prune"); got.code == 0 || !strings.Contains(got.stderr, "--older 720h") {
		t.Errorf("without a bound: %s", got)
	}
	if got := b.ctl("audit", "prune", "--total", "0", "--dry-run"); got.code != 0 || !strings.HasPrefix(got.stdout, old+":") || strings.Contains(got.stdout, file) {
		t.Errorf("what would be removed: %s", got)
	}
	b.loseGateway()
	if got := b.ctl("audit", "prune", "--total", "0"); got.code != 0 || !strings.HasPrefix(got.stdout, old+":") || strings.Contains(got.stdout, file) {
		t.Errorf("what was removed: %s", got)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old one is there")
	}
	b.must(os.Symlink("log", b.path("logs")))
	b.settings("log_dir: " + b.path("logs") + "\n")
	if got := b.ctl("audit", "prune", "--total", "0"); got.code != 0 || got.stdout != "" {
		t.Errorf("what was removed from the directory by another name: %s", got)
	}
	b.settings("")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
		t.Fatalf("delete: %s", got)
	}
	if got := b.ctl("audit", "prune", "--older", "0s"); got.code != 0 || !strings.HasPrefix(got.stdout, file+":") {
		t.Errorf("what has ended: %s", got)
	}
}

// Who does not read what he follows holds nothing up, and gets it all later; who
// comes too late is told what is not kept any more; a program goes on behind the
// last line that it saw.
func TestEventsGoOn(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	b.settings("audit: {max_size: 65536}\n")
	main := b.up()
	_ = main.ask("dial first.evil.example:443")
	first := b.await("a refusal", func(l line) bool { return l.More.Verdict == "refuse" })
	after := func(n int) *stream { return b.follow("--json", "--after", fmt.Sprint(n), b.id) }
	again, slow := after(first.Metadata.Sequence-1), after(1)
	again.awaitLine("first.evil.example")
	last := ""
	for i := 0; ; i++ {
		last = fmt.Sprintf("h%d.evil.example", i)
		_ = main.ask("dial " + last + ":443")
		if parts, _ := filepath.Glob(b.path("log/*.jsonl.4")); len(parts) > 0 {
			break
		}
		if i == 4000 {
			t.Fatal("the log does not go on in other files")
		}
	}
	for _, s := range []*stream{again, slow} {
		s.awaitLine(last)
		if said := s.said(); said != "" {
			t.Errorf("who gets everything is told: %s", said)
		}
	}
	b.must(os.Remove(b.auditFile() + ".1")) // as if it were kept no longer
	behind := after(1)
	behind.awaitLine(last)
	if said := behind.said(); !strings.Contains(said, "lines 2 to ") || !strings.Contains(said, "are not kept any more") {
		t.Errorf("who comes too late is told: %q", said)
	}
}

// stream is what a nemoclawctl events that runs has to say.
type stream struct {
	b     *box
	cmd   *exec.Cmd
	lines *bufio.Scanner
	file  string // of its standard error
}

func (b *box) follow(args ...string) *stream {
	b.t.Helper()
	cmd := exec.Command(program(b.t, "nemoclawctl"), append([]string{"events"}, args...)...)
	cmd.Env = append(os.Environ(), "NEMOCLAW_CONFIG="+b.path("config.yaml"))
	stderr, err := os.CreateTemp(b.t.TempDir(), "stderr")
	b.must(err)
	defer stderr.Close()
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	b.must(err)
	b.must(cmd.Start())
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &stream{b, cmd, bufio.NewScanner(stdout), stderr.Name()}
}

// awaitLine reads up to a line with words in it. One that never comes ends it.
func (s *stream) awaitLine(words string) {
	s.b.t.Helper()
	defer time.AfterFunc(patience, func() { s.cmd.Process.Kill() }).Stop()
	for s.lines.Scan() {
		if strings.Contains(s.lines.Text(), words) {
			return
		}
	}
	s.b.t.Fatalf("it ends without %q: %v %s", words, s.lines.Err(), s.said())
}

func (s *stream) said() string {
	text, err := os.ReadFile(s.file)
	s.b.must(err)
	return string(text)
}
