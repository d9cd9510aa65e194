package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What one self of the program tells the next.
const (
	stageEnv   = "NEMOCLAW_BENCH_STAGE"
	repoEnv    = "NEMOCLAW_BENCH_REPO"
	scratchEnv = "NEMOCLAW_BENCH_SCRATCH"
	cgroupEnv  = "NEMOCLAW_BENCH_CGROUP"
)

// runHost measures in a host of its own, whose first process ends everything in
// it, and that ends with ctx or with us. Its processes are in our pid namespace,
// as those of a real host: in another the gateway would have to search for the
// processes that connect.
func runHost(ctx context.Context, o options, args []string, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("cannot measure: containers take root")
	}
	repo, err := repository(ctx)
	if err != nil {
		return err
	}
	cache := filepath.Join(repo, ".cache", "bench")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	if cache, err = filepath.EvalSymlinks(cache); err != nil { // a bundle's root must not lead through one
		return err
	}
	if err := buildRunc(ctx, cache); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
	}
	if o.measures("net") || o.measures("memory") {
		if err := unpackProxies(ctx, cache); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
		}
	}
	scratch, err := os.MkdirTemp(cache, "host-*")
	if err != nil {
		return err
	}
	cgroup := "nemoclaw-bench-" + strconv.Itoa(os.Getpid())
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=init", repoEnv+"="+repo, scratchEnv+"="+scratch, cgroupEnv+"="+cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGTERM,
		Setpgid:    true, // an interrupt from the terminal is for us alone
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err = cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = errors.New("not everything was measured") // it has said why
	}
	return errors.Join(err, sweep(cgroup), os.RemoveAll(scratch))
}

func repository(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("cannot find the source tree: go env: %w", err)
	}
	repo := filepath.Dir(strings.TrimSpace(string(out)))
	for _, program := range []string{"nemoclaw", "nemoclaw-gateway"} {
		if _, err := os.Stat(filepath.Join(repo, "bin", program)); err != nil {
			return "", fmt.Errorf("cannot measure before \"make build\": %w", err)
		}
	}
	return repo, nil
}

// sweep removes the cgroups of the host: its containers' below one parent, its
// gateways' beside those of others, told apart by their names. Every process in
// them has ended by now.
func sweep(cgroup string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/" + cgroup, "/sys/fs/cgroup/*/" + cgroup,
		"/sys/fs/cgroup/nemoclaw/" + cgroup + "-*", "/sys/fs/cgroup/*/nemoclaw/" + cgroup + "-*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			errs = append(errs, removeTree(dir))
			if parent := filepath.Dir(dir); filepath.Base(parent) == "nemoclaw" {
				os.Remove(parent) // if no other gateway is left
			}
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a cgroup and those below it, deepest first.
func removeTree(dir string) error {
	below, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range below {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// beInit is the first process of the throw-away host. It lays out the file
// system, starts the measuring, adopts whoever loses its parent, and ends them
// all (PR_SET_CHILD_SUBREAPER, Linux 3.4).
func beInit(args []string) int {
	if err := errors.Join(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), layOut()); err != nil {
		fmt.Fprintln(os.Stderr, "bench: cannot make the throw-away host:", err)
		return exitFailed
	}
	cmd := exec.Command("/proc/self/exe", args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=bench")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: cannot start the measuring:", err)
		return exitFailed
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		_ = cmd.Process.Kill() // the others follow
	}()
	code := exitFailed
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return code
		case err != nil && !errors.Is(err, unix.EINTR):
			return exitFailed
		case err == nil && pid == cmd.Process.Pid && status.Exited():
			code = status.ExitStatus()
		}
		if cmd.Process.Pid == pid || !alive(cmd.Process.Pid) {
			for _, orphan := range children(os.Getpid()) {
				_ = unix.Kill(orphan, unix.SIGKILL) // theirs come to us
			}
		}
	}
}

// alive tells whether a process that only Wait4 above waits for is there.
func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// layOut gives the host a /proc, a /run and a /dev/shm of its own. It hides the empty
// version 2 of a hybrid cgroup tree, with which crun refuses to work, from all
// contestants alike.
func layOut() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, at := range [][2]string{{"proc", "/proc"}, {"tmpfs", "/run"}, {"tmpfs", "/dev/shm"}} {
		if err := unix.Mount(at[0], at[1], at[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", at[1], err)
		}
	}
	if hybrid := "/sys/fs/cgroup/unified/cgroup.controllers"; exists(hybrid) {
		if err := unix.Mount("/dev/null", hybrid, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", hybrid, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
