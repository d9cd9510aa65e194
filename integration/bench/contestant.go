package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runcVersion is the runc that nemoclaw is compared with.
const runcVersion = "1.5.2"

// The contestants' names, in tables.
const (
	nemoclaw   = "nemoclaw"
	reference  = "runc " + runcVersion
	debianRunc = "runc of the distribution"
	crun       = "crun"
)

// pause is how far apart measurements are at least: see the package's comment.
const pause = 150 * time.Millisecond

// contestant is a runtime with the arguments that each command begins with.
type contestant struct {
	name string
	argv []string
	env  []string
}

// buildRunc builds the reference as runc's own releases are built: static, with
// seccomp. It is built once.
func buildRunc(ctx context.Context, cache string) error {
	if exists(filepath.Join(cache, "runc")) {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "install", "-tags", "seccomp,netgo,osusergo", "-ldflags", "-extldflags -static",
		"github.com/opencontainers/runc@v"+runcVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+cache, "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build runc %s: %w: %s", runcVersion, err, bytes.TrimSpace(out))
	}
	return nil
}

// prepare finds the contestants and writes nemoclaw's settings: state in memory
// as on a real host, audit logs on the disk.
func (b *bench) prepare() error {
	settings := filepath.Join(b.scratch, "config.yaml")
	logs := filepath.Join(b.scratch, "log")
	text := fmt.Sprintf("run_dir: /run/nemoclaw\nlog_dir: %s\npolicy_dir: %s\npolicy: %s\nallow_unconfined: true\n", logs, b.scratch, filepath.Join(b.scratch, "none.yaml"))
	if err := errors.Join(os.Mkdir(logs, 0o700), os.WriteFile(settings, []byte(text), 0o600)); err != nil {
		return err
	}
	for _, c := range []struct{ name, program string }{
		{nemoclaw, filepath.Join(b.repo, "bin", "nemoclaw")},
		{reference, filepath.Join(b.repo, ".cache", "bench", "runc")},
		{debianRunc, "runc"},
		{crun, "crun"},
	} {
		path, err := exec.LookPath(c.program)
		if err != nil {
			b.missing = append(b.missing, c.name)
			continue
		}
		root := filepath.Join("/run", strings.ReplaceAll(c.name, " ", "-"), "containers") // not nemoclaw's own directory
		if err := os.MkdirAll(root, 0o711); err != nil {
			return err
		}
		b.runtimes = append(b.runtimes, contestant{c.name, []string{path, "--root", root}, append(os.Environ(), "NEMOCLAW_CONFIG="+settings)})
	}
	return b.makeRootfs()
}

// contestant returns the one called name.
func (b *bench) contestant(name string) (contestant, error) {
	for _, c := range b.runtimes {
		if c.name == name {
			return c, nil
		}
	}
	return contestant{}, fmt.Errorf("%s is not installed", name)
}

// command is one of c's commands. Its streams are /dev/null but for what goes
// wrong.
func (c contestant) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.argv[0], append(c.argv[1:len(c.argv):len(c.argv)], args...)...)
	cmd.Env = c.env
	return cmd
}

// do runs one of c's commands. A detached container keeps stderr open for its
// life, so that is a file and not a pipe.
func (c contestant) do(args ...string) error {
	stderr, err := os.CreateTemp("/run", "stderr-*")
	if err != nil {
		return err
	}
	defer stderr.Close()
	defer os.Remove(stderr.Name())
	cmd := c.command(args...)
	cmd.Stderr = stderr
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(stderr.Name())
		return fmt.Errorf("%s %s: %w: %s", c.name, args[0], err, bytes.TrimSpace(said))
	}
	return nil
}

// container is one that exists.
type container struct {
	contestant
	id    string
	pid   int
	pidfd int
}

// create makes a container from bundle and holds its init.
func (b *bench) create(c contestant, bundle string) (*container, error) {
	b.started++
	k := &container{contestant: c, id: fmt.Sprintf("%s-%d", b.cgroup, b.started)}
	file := filepath.Join("/run", k.id+".pid")
	if err := c.do("create", "--bundle", bundle, "--pid-file", file, k.id); err != nil {
		return nil, err
	}
	defer os.Remove(file)
	text, err := os.ReadFile(file)
	if err == nil {
		if k.pid, err = strconv.Atoi(string(bytes.TrimSpace(text))); err == nil {
			k.pidfd, err = unix.PidfdOpen(k.pid, 0)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot hold the init of %s: %w", c.name, err), c.do("delete", "--force", k.id))
	}
	return k, nil
}

// wait returns when init has ended.
func (k *container) wait() error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(k.pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// remove deletes the container, also one that runs.
func (k *container) remove() error {
	unix.Close(k.pidfd)
	return k.do("delete", "--force", k.id)
}

// writeJSON writes a bundle's config.json.
func writeJSON(file string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}
