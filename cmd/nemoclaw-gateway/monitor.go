package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/monitor"
	"nemoclaw/hooks"
)

// monitorMemory is what the collector keeps a monitor's heap below, in bytes.
const monitorMemory = 64 << 20

// runMonitor serves the sandbox whose state directory is dir until it ends.
func runMonitor(dir string) error {
	debug.SetGCPercent(50) // there is one monitor for each sandbox, and it idles
	debug.SetMemoryLimit(monitorMemory)
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := detach(); err != nil {
		return fmt.Errorf("cannot detach: %w", err)
	}
	conn, err := control.FromFile(os.NewFile(conversation, "creator"))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGINT)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	m := &monitor.Monitor{
		Dir:     dir,
		Worker:  []string{"/proc/self/exe", "worker"},
		Listen:  hooks.Listen,
		Evict:   hooks.Evict,
		Engine:  new(hooks.Engine).Dial,
		Unplug:  hooks.Unplug,
		Return:  hooks.Return,
		Follow:  hooks.Follow,
		Inbound: hearInbound,
		Refused: hooks.Refused,
		Cgroup:  "/sys/fs/cgroup",
		Reader:  []string{"/proc/self/exe", "denials"},
	}
	return m.Run(ctx, conn, reload)
}

// detach lets go of everything that belongs to whoever started the monitor:
// engines wait until the pipes that they gave to the runtime are closed.
func detach() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	unix.Umask(0o077)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for fd := range conversation {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return err
		}
	}
	unix.Close(null)
	unix.CloseOnExec(conversation)
	// Best effort: a host may forbid it, and the worker dies first anyway.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-500"), 0)
	return closeInherited()
}

// closeInherited closes every descriptor above the conversation that the Go
// runtime did not open for itself.
func closeInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= conversation {
			continue
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || ofRuntime(link) {
			continue
		}
		unix.Close(fd)
	}
	return nil
}

// ofRuntime tells the descriptors that the Go runtime may have opened by now:
// its poller, and the limits of its cgroup.
func ofRuntime(link string) bool {
	return link == "anon_inode:[eventpoll]" || link == "anon_inode:[eventfd]" || strings.HasPrefix(link, "/sys/fs/cgroup/")
}
