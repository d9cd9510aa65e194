package engines

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What one stage of the test binary tells the next.
const (
	cacheEnv   = "NEMOCLAW_ENGINES_CACHE"
	scratchEnv = "NEMOCLAW_ENGINES_SCRATCH" // ends with the host
	cgroupEnv  = "NEMOCLAW_ENGINES_CGROUP"  // parent of every container's, below each hierarchy
)

// Every host's cgroups and scratch directory are named for its process.
const (
	cgroupPrefix  = "nemoclaw-engines-"
	scratchPrefix = ".host-"
)

// runHost runs the tests in a host of their own and returns their exit code.
// The kernel ends everything in that host with its init, and its init with us.
func runHost(c cache) (int, error) {
	if err := sweepDead(c); err != nil {
		return 0, err
	}
	self := strconv.Itoa(os.Getpid())
	scratch, cgroup := filepath.Join(string(c), scratchPrefix+self), cgroupPrefix+self
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return 0, err
	}
	if err := install(scratch); err != nil {
		return 0, errors.Join(fmt.Errorf("cannot install nemoclaw: %w", err), os.RemoveAll(scratch))
	}
	before := gatewayCgroups()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=init", cacheEnv+"="+string(c), scratchEnv+"="+scratch, cgroupEnv+"="+cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := onOneThread(cmd.Run)
	code := cmd.ProcessState.ExitCode()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	for dir := range gatewayCgroups() { // of monitors that were killed with the host
		if !before[dir] && isEmptyCgroup(dir) {
			err = errors.Join(err, removeTree(dir))
		}
	}
	return code, errors.Join(err, sweep(c, self))
}

// onOneThread keeps to one thread, since a parent's death signal is that of
// the thread that started the child (prctl(2), PR_SET_PDEATHSIG).
func onOneThread(f func() error) error {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	return f()
}

// sweepDead removes what a run before this one left that was killed.
func sweepDead(c cache) error {
	var errs []error
	dirs, _ := filepath.Glob(filepath.Join(string(c), scratchPrefix+"*"))
	for _, dir := range dirs {
		pid := strings.TrimPrefix(filepath.Base(dir), scratchPrefix)
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, sweep(c, pid))
		}
	}
	return errors.Join(errs...)
}

// sweep removes the cgroups and the scratch directory of a host whose processes
// have ended.
func sweep(c cache, pid string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(pattern + cgroupPrefix + pid)
		for _, dir := range dirs {
			errs = append(errs, removeTree(dir))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(string(c), scratchPrefix+pid)))...)
}

// install installs nemoclaw into the scratch directory, as a person would.
func install(scratch string) error {
	cmd := exec.Command("make", "-C", repository(), "install", "DESTDIR="+scratch, "PREFIX=/nemoclaw")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	return quietly(cmd)
}

// installed is where install has put the programs.
func installed() string { return filepath.Join(os.Getenv(scratchEnv), "nemoclaw", "bin") }

// ofEngines are the names of cgroups of gateways whose sandboxes this host's
// engines named; other tests of the machine have theirs beside them.
var ofEngines = regexp.MustCompile(`^([0-9a-f]{64}|engines-[a-z]+)\.`)

// gatewayCgroups are those of our gateways, and of another host's like this.
func gatewayCgroups() map[string]bool {
	found := map[string]bool{}
	for _, pattern := range []string{"/sys/fs/cgroup/*/nemoclaw/*/cgroup.procs", "/sys/fs/cgroup/nemoclaw/*/cgroup.procs"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if dir := filepath.Dir(f); ofEngines.MatchString(filepath.Base(dir)) {
				found[dir] = true
			}
		}
	}
	return found
}

func isEmptyCgroup(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	return err == nil && len(b) == 0
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

// beInit is the first process of the throw-away host: it lays out the file
// system, runs the tests and reaps whoever loses its parent.
func beInit() int {
	if err := layOut(os.Getenv(scratchEnv)); err != nil {
		fmt.Fprintln(os.Stderr, "cannot make the throw-away host:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=tests")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot start the tests:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "cannot wait for the tests:", err)
			return 1
		}
		if pid == cmd.Process.Pid {
			if status.Exited() {
				return status.ExitStatus()
			}
			return 128 + int(status.Signal())
		}
	}
}

// layOut gives this mount namespace an /etc of its own over the machine's, and
// empty places for whatever engines and nemoclaw keep.
func layOut(scratch string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	library := filepath.Join(scratch, "var-lib")
	if err := os.Mkdir(library, 0o755); err != nil {
		return err
	}
	for _, m := range []struct {
		source, at, kind string
		flags            uintptr
		options          string
	}{
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
		{"tmpfs", "/var/log", "tmpfs", 0, "mode=0755"},
		{library, "/var/lib", "", unix.MS_BIND, ""},
	} {
		if err := unix.Mount(m.source, m.at, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for _, dir := range []string{"/run/etc/upper", "/run/etc/work", "/run/lock", "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"); err != nil {
		return fmt.Errorf("mount /etc: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// leftovers are the processes of this host that belong to nobody who should be
// left: everyone but init, ourselves and whom we name.
func leftovers(but ...string) []string {
	var found []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(line) == 0 { // gone, or a zombie on its way to init
			continue
		}
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		name := filepath.Base(words[0])
		if name == "exe" && len(words) > 1 {
			name = words[1]
		}
		if !slices.Contains(but, name) {
			found = append(found, strings.Join(words, " "))
		}
	}
	return found
}
