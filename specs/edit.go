package specs

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/policy"
	"nemoclaw/specs/seccomp"
)

// Edit is one change to a spec, and what it does in words: "X: Y", where X is
// the layer. An edit that finds nothing to change says nothing.
type Edit struct {
	Does  string
	apply func(*oci.Spec) // nil: another edit does it
}

// Apply applies edits in order.
func Apply(spec *oci.Spec, edits []Edit) {
	for _, e := range edits {
		if e.apply != nil {
			e.apply(spec)
		}
	}
}

// Say returns what edits do, in order, without those that change nothing.
func Say(edits []Edit) []string {
	var said []string
	for _, e := range edits {
		if e.Does != "" {
			said = append(said, e.Does)
		}
	}
	return said
}

// Confine returns everything that is done to a spec, in the order it is done,
// and the denials of the second filter. Where the engine gave no profile, none
// is left in the spec: the launcher brings Docker's (seccomp.CompileDefault), which
// libcontainer would have libseccomp compile again for each process. The spec is
// not changed.
func Confine(spec *oci.Spec, p *policy.Policy, host Host) ([]Edit, []seccomp.Denial, error) {
	edits := confineProcess(spec.Process, p)

	profile, again, note, err := firstFilter(spec)
	if err != nil {
		return nil, nil, err
	}
	if SharesProcesses(spec) {
		again = append(again, seccomp.OthersLimits)
	}
	if !p.Filesystem.WriteExecute {
		again = append(again, seccomp.WriteExecute.Denials...)
	}
	denials, err := seccomp.Denials(callNames(p.Seccomp.Deny), callNames(p.Seccomp.Allow), again)
	if err != nil {
		return nil, nil, err
	}
	edits = append(edits,
		Edit{note, func(s *oci.Spec) { s.Linux.Seccomp = profile }},
		maskKernel(spec),
		leaveOutTokens(spec, p),
		resolvConf(host),
	)
	edits = append(edits, cutDevices(spec, p, host)...)
	if !p.Filesystem.WriteExecute {
		edits = append(edits, Edit{Does: "filesystem: what may be written, also to memory, is not executed"})
	}
	edits = append(edits, scratchDirs(spec, p, host)...)
	edits = append(edits, homes(spec.Process, p, likelyWritable(spec, p, host))...)
	return edits, denials, nil
}

// likelyWritable is Writable before the image is known: if no link of the image
// leads elsewhere, the volumes are where the spec says.
func likelyWritable(spec *oci.Spec, p *policy.Policy, host Host) []string {
	var image Image
	for _, v := range Visible(spec, host.Volumes) {
		image.Volumes = append(image.Volumes, path.Clean(v.Destination))
	}
	return Writable(SpareVolumes(p, image, StaticRules(spec, p, host)))
}

// ConfineExec returns what is done to a process that joins a container: the
// same as to its first one. writable are the directories granted at create.
func ConfineExec(proc *oci.Process, p *policy.Policy, writable []string) []Edit {
	return append(confineProcess(proc, p), homes(proc, p, writable)...)
}

func confineProcess(proc *oci.Process, p *policy.Policy) []Edit {
	return []Edit{ceiling(proc, p.Capabilities), noNewPrivileges(proc)}
}

// firstFilter returns what libcontainer loads, nil where the engine gave nothing,
// and what the second filter denies again of it.
func firstFilter(spec *oci.Spec) (profile *oci.LinuxSeccomp, again []seccomp.Denial, note string, err error) {
	given := spec.Linux.Seccomp
	if given == nil || given.DefaultAction == "" && len(given.Syscalls) == 0 { // which runc takes for none
		return nil, nil, "seccomp: the engine gave no profile, Docker's default is used", nil
	}
	profile, again, err = seccomp.Admit(given)
	return profile, again, "", err
}

func callNames(list []policy.Syscall) []string {
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
	}
	return names
}

func noNewPrivileges(proc *oci.Process) Edit {
	e := Edit{apply: func(s *oci.Spec) { s.Process.NoNewPrivileges = true }}
	if !proc.NoNewPrivileges {
		e.Does = "process: no_new_privs is set, setuid programs gain nothing"
	}
	return e
}

// Ceiling is the most that a sandbox may hold: Docker's fourteen less NET_RAW
// (forged packets), MKNOD (devices) and SYS_CHROOT (another root for the next
// exec to look into).
var Ceiling = []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}

// MayHold returns the most that any process of a sandbox may hold: the ceiling,
// or what of it the policy keeps.
func MayHold(kept *policy.Capabilities) []string {
	return slices.DeleteFunc(slices.Clone(Ceiling), func(name string) bool {
		return kept != nil && !slices.Contains(kept.Keep, strings.TrimPrefix(name, "CAP_"))
	})
}

// ceiling cuts every set of capabilities to what may be held.
func ceiling(proc *oci.Process, kept *policy.Capabilities) Edit {
	if proc.Capabilities == nil {
		return Edit{apply: func(*oci.Spec) {}}
	}
	most := MayHold(kept)
	allowed := func(name string) bool { return slices.Contains(most, name) }
	dropped := map[string]bool{}
	cut := func(set []string) []string {
		var left []string
		for _, name := range set {
			if allowed(name) {
				left = append(left, name)
			} else {
				dropped[strings.TrimPrefix(name, "CAP_")] = true
			}
		}
		return left
	}
	c := proc.Capabilities
	less := &oci.LinuxCapabilities{
		Bounding: cut(c.Bounding), Effective: cut(c.Effective), Permitted: cut(c.Permitted),
		Inheritable: cut(c.Inheritable), Ambient: cut(c.Ambient),
	}
	e := Edit{apply: func(s *oci.Spec) { s.Process.Capabilities = less }}
	if len(dropped) > 0 {
		e.Does = "capabilities: dropped " + strings.Join(slices.Sorted(maps.Keys(dropped)), " ")
	}
	return e
}

// kernelFiles are what Docker hides of proc and sysfs, where --privileged shows
// them, and what tells root of the pages of the whole machine.
var kernelFiles = struct{ masked, readonly []string }{
	masked: []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"},
	readonly: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
}

func maskKernel(spec *oci.Spec) Edit {
	masked, readonly := union(spec.Linux.MaskedPaths, kernelFiles.masked), union(spec.Linux.ReadonlyPaths, kernelFiles.readonly)
	e := Edit{apply: func(s *oci.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = masked, readonly }}
	if n := len(masked) + len(readonly) - len(spec.Linux.MaskedPaths) - len(spec.Linux.ReadonlyPaths); n > 0 {
		e.Does = fmt.Sprintf("mounts: %d more files of the kernel are hidden or read-only", n)
	}
	return e
}

// leaveOutTokens takes the mount of a Kubernetes service account's token away
// unless the policy names it: where the image has no /run, it would lie in a
// directory of the image and be granted with that.
func leaveOutTokens(spec *oci.Spec, p *policy.Policy) Edit {
	named := func(dest string) bool {
		lists := slices.Concat(p.Filesystem.ReadOnly, p.Filesystem.ReadWrite)
		return slices.ContainsFunc(lists, func(f policy.Path) bool { return isToken(f.Name) && within(dest, f.Name) })
	}
	var kept []oci.Mount
	for _, m := range spec.Mounts {
		if dest := path.Clean(m.Destination); !isToken(dest) || named(dest) {
			kept = append(kept, m)
		}
	}
	e := Edit{apply: func(s *oci.Spec) { s.Mounts = kept }}
	if len(kept) < len(spec.Mounts) {
		e.Does = "mounts: the service account's token is left out, the policy does not name it"
	}
	return e
}

// union returns a followed by those of b that it lacks.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func resolvConf(host Host) Edit {
	if host.HasResolvConf {
		return Edit{apply: func(*oci.Spec) {}}
	}
	return Edit{"network: /etc/resolv.conf is mounted, the image has none", func(s *oci.Spec) {
		s.Mounts = append(s.Mounts, oci.Mount{Destination: "/etc/resolv.conf", Type: "bind", Source: host.ResolvConf,
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}})
	}}
}

// scratchDirs mounts a tmpfs where the policy grants a directory that a
// read-only root does not have and that no mount brings: nobody could make it.
// An empty /sandbox counts as missing: it is where we mounted the last time. An
// empty /tmp does not: an engine that wants it writable mounts something there.
func scratchDirs(spec *oci.Spec, p *policy.Policy, host Host) []Edit {
	if spec.Root == nil || !spec.Root.Readonly {
		return nil
	}
	var edits []Edit
	for _, r := range StaticRules(spec, p, host) {
		missing := host.Missing[r.Path] || r.Path == sandboxDir && host.Empty[r.Path]
		if r.Make && missing && !mounted(spec, r.Path) {
			mount := oci.Mount{Destination: r.Path, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=0755",
				fmt.Sprintf("uid=%d", spec.Process.User.UID), fmt.Sprintf("gid=%d", spec.Process.User.GID)}}
			edits = append(edits, Edit{"mounts: a tmpfs at " + r.Path + ", the root is read-only", func(s *oci.Spec) {
				s.Mounts = append(s.Mounts, mount)
			}})
		}
	}
	return edits
}

func mounted(spec *oci.Spec, dir string) bool {
	return slices.ContainsFunc(spec.Mounts, func(m oci.Mount) bool { return path.Clean(m.Destination) == dir })
}
