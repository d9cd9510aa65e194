package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
)

const (
	cgroupParent = "nemoclaw"
	// memoryMax bounds what a flood of connections may cost the host, in bytes.
	memoryMax = limits.Memory
	// pidsMax bounds threads of the monitor and its worker together.
	pidsMax = limits.Tasks
	// cpuQuota is how much of each cpuPeriod, in microseconds, they may compute:
	// two processors. What a sandbox makes its gateway do is not counted as the
	// sandbox's own.
	cpuQuota, cpuPeriod = limits.Processors * 100_000, 100_000
)

// cgroup is the gateway's own place, one directory in each hierarchy. The nil
// cgroup is wherever the monitor was started.
type cgroup struct{ places []place }

type place struct{ hierarchy, dir string }

// newCgroup makes a cgroup below root/parent. What cannot be had is told in
// the error; what could be had is returned with it.
func newCgroup(root, parent, name string) (*cgroup, error) {
	if parent == "" {
		parent = cgroupParent
	}
	c := new(cgroup)
	var errs []error
	for _, h := range hierarchies(root) {
		dir := filepath.Join(h, filepath.Clean("/"+parent), name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		c.places = append(c.places, place{h, dir})
		errs = append(errs, limit(h, dir))
	}
	if len(c.places) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("no cgroups at %s", root))
	}
	return c, because(errs)
}

// hierarchies returns the mount points that matter: the one of version 2, or
// those of version 1 and, in a hybrid, the unified one beside them
// (cgroups(7)).
func hierarchies(root string) (found []string) {
	if isCgroup2(root) {
		return []string{root}
	}
	for _, name := range []string{"memory", "cpu", "pids", "systemd", "unified"} {
		if dir := filepath.Join(root, name); isCgroup(dir) {
			found = append(found, dir)
		}
	}
	return found
}

func isCgroup2(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func isCgroup(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

// limit bounds memory, threads and computing.
func limit(hierarchy, dir string) error {
	if isCgroup2(hierarchy) {
		return errors.Join(
			limit2(hierarchy, dir, "memory", "memory.max", strconv.Itoa(memoryMax)),
			limit2(hierarchy, dir, "pids", "pids.max", strconv.Itoa(pidsMax)),
			limit2(hierarchy, dir, "cpu", "cpu.max", fmt.Sprint(cpuQuota, " ", cpuPeriod)),
		)
	}
	switch filepath.Base(hierarchy) {
	case "memory":
		return write(dir, "memory.limit_in_bytes", strconv.Itoa(memoryMax))
	case "pids":
		return write(dir, "pids.max", strconv.Itoa(pidsMax))
	case "cpu":
		return errors.Join(write(dir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)), write(dir, "cpu.cfs_quota_us", strconv.Itoa(cpuQuota)))
	}
	return nil
}

// limit2 sets one limit of version 2, whose controller must be handed down
// from the root, level by level. In a hybrid it belongs to version 1.
func limit2(hierarchy, dir, controller, file, value string) error {
	have, err := os.ReadFile(filepath.Join(hierarchy, "cgroup.controllers"))
	if err != nil || !slices.Contains(strings.Fields(string(have)), controller) {
		return err
	}
	for d := hierarchy; d != dir; d = nextBelow(d, dir) {
		if err := write(d, "cgroup.subtree_control", "+"+controller); err != nil {
			return err
		}
	}
	return write(dir, file, value)
}

// nextBelow is the directory one level below d on the way to dir.
func nextBelow(d, dir string) string {
	rest := strings.TrimPrefix(dir, d+"/")
	first, _, _ := strings.Cut(rest, "/")
	return filepath.Join(d, first)
}

// write writes without making a file: in a cgroup none can be made.
func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// join moves a process here.
func (c *cgroup) join(pid int) error {
	if c == nil {
		return nil
	}
	var errs []error
	for _, p := range c.places {
		errs = append(errs, write(p.dir, "cgroup.procs", strconv.Itoa(pid)))
	}
	return because(errs)
}

// leave moves this process to the top, since nobody can remove the cgroup that
// he is in, and removes it. The parent goes with its last child.
func (c *cgroup) leave() {
	if c == nil {
		return
	}
	for _, p := range c.places {
		_ = write(p.hierarchy, "cgroup.procs", strconv.Itoa(os.Getpid()))
		if os.Remove(p.dir) == nil && filepath.Base(filepath.Dir(p.dir)) == cgroupParent {
			os.Remove(filepath.Dir(p.dir))
		}
	}
}

func because(errs []error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot give the gateway a cgroup of its own: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}
