package denials

import (
	"fmt"
	"strconv"
	"strings"

	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
	"nemoclaw/specs/seccomp"
)

// What of a record's text is passed on, in bytes. Programs choose these strings.
const (
	maxPath = 1024
	maxName = 64
)

// landlock is the denial of a record of Landlock's, without its process.
func landlock(r kaudit.Record) control.Denial {
	return control.Denial{
		Layer:  control.LayerLandlock,
		Time:   r.Time,
		Rights: strings.Split(r.Field("blockers"), ","),
		Path:   clip(r.Field("path"), maxPath),
		Device: clip(r.Field("dev"), maxName),
		Inode:  r.Field("ino"),
	}
}

// isCanary tells the launcher's own denial, the first of its domain: the root of
// a file system in memory that is mounted nowhere.
func isCanary(d control.Denial) bool {
	return len(d.Rights) == 1 && d.Rights[0] == "fs.read_dir" && d.Path == "/" && d.Device == "tmpfs"
}

// call is the denial of a record of seccomp's.
func call(r kaudit.Record) control.Denial {
	d := control.Denial{Layer: control.LayerSeccomp, Time: r.Time, Call: callName(r.Field("arch"), r.Int("syscall"))}
	ofProcess(&d, r)
	return d
}

// callName names a system call by the number that an architecture has for it.
func callName(arch string, number int) string {
	a, err := strconv.ParseUint(arch, 16, 32)
	if err != nil || number < 0 {
		return "unknown"
	}
	if name := seccomp.CallName(uint32(a), uint32(number)); name != "" {
		return name
	}
	return fmt.Sprintf("%d of architecture %s", number, arch)
}

// ofProcess fills in the process of a record that names it.
func ofProcess(d *control.Denial, r kaudit.Record) {
	d.PID, d.UID = r.Int("pid"), r.Int("uid")
	d.Name, d.Exe = clip(r.Field("comm"), maxName), clip(r.Field("exe"), maxPath)
}

// launcherOf returns the name of the memory file that entered a domain, or ""
// if it was none.
func launcherOf(r kaudit.Record) string {
	name, ok := strings.CutPrefix(r.Field("exe"), "/memfd:")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(name, " (deleted)")
}

func clip(s string, n int) string { return s[:min(len(s), n)] }
