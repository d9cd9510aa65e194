package proof

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// inhabitants returns the processes that live in the sandbox: those of its
// cgroups, and whoever shares its network or its mounts. Those of another
// sandbox that shares a namespace are that one's.
func (b *box) inhabitants() ([]int, error) {
	pids, err := members(b.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the sandbox's cgroups: %w", err)
	}
	others := b.others()
	for _, name := range []string{"net", "mnt"} {
		want, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", b.InitPID, name))
		if err != nil {
			return nil, fmt.Errorf("cannot identify the sandbox's namespaces: %w", err)
		}
		for _, pid := range everybody() {
			// A process that ends meanwhile lives nowhere.
			st, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
			if err == nil && os.SameFile(st, want) && !slices.Contains(others, pid) {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func everybody() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// others are the processes in the cgroups of the other sandboxes.
func (b *box) others() []int {
	sandboxes, err := control.Sandboxes(b.prover.RunDir)
	if err != nil {
		return nil
	}
	var pids []int
	for dir := range sandboxes {
		if dir != b.dir {
			more, _ := members(dir)
			pids = append(pids, more...)
		}
	}
	return pids
}

// members returns the processes in the cgroups of a state directory's
// container, and in those below them (cgroups(7), cgroup.procs).
func members(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, control.CgroupsFile))
	if err != nil {
		return nil, err
	}
	var paths map[string]string
	if err := json.Unmarshal(text, &paths); err != nil {
		return nil, err
	}
	var pids []int
	for _, top := range paths {
		if top == "" {
			continue
		}
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // a group that went meanwhile has nobody in it
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids, nil
}

// credentials is what /proc/PID/task/TID/status tells of a thread's
// confinement (proc_pid_status(5)).
type credentials struct {
	noNewPrivs bool
	mode       int // of seccomp
	filters    int
	uid        int
	caps       map[string]uint64 // CapInh, CapPrm, CapEff, CapBnd, CapAmb
	zombie     bool
}

func readCredentials(pid, tid int) (*credentials, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
	if err != nil {
		return nil, err
	}
	c := &credentials{caps: map[string]uint64{}, filters: -1}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			c.zombie = strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
		case "NoNewPrivs":
			c.noNewPrivs = value == "1"
		case "Seccomp":
			c.mode, _ = strconv.Atoi(value)
		case "Seccomp_filters": // Linux 5.9
			c.filters, _ = strconv.Atoi(value)
		case "Uid":
			first, _, _ := strings.Cut(value, "\t")
			c.uid, _ = strconv.Atoi(first)
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			if c.caps[key], err = strconv.ParseUint(value, 16, 64); err != nil {
				return nil, fmt.Errorf("cannot understand %s of process %d", key, pid)
			}
		}
	}
	return c, nil
}

// threads returns the thread ids of a process; none if it has ended.
func threads(pid int) []int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	var tids []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// called names a process for people; the program chose the name.
func called(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, exe)
}

// capabilityNames are in the order of their bits (capabilities(7)).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

func capabilitySet(names []string) (set uint64) {
	for _, name := range names {
		if bit := slices.Index(capabilityNames, strings.TrimPrefix(name, "CAP_")); bit >= 0 {
			set |= 1 << bit
		}
	}
	return set
}

func capabilityList(set uint64) string {
	var names []string
	for bit := range 64 {
		switch {
		case set&(1<<bit) == 0:
		case bit < len(capabilityNames):
			names = append(names, capabilityNames[bit])
		default:
			names = append(names, strconv.Itoa(bit))
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

// seccompFilter is the mode of a process with filters (proc_pid_status(5)).
const seccompFilter = unix.SECCOMP_MODE_FILTER
