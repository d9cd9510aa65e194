package seccomp

import (
	"fmt"
	"maps"
	"math"
	"slices"

	mobyseccomp "github.com/moby/profiles/seccomp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Default returns the profile of a container whose engine gave none: Docker's,
// for the capabilities that spec has.
func Default(spec *oci.Spec) (*oci.LinuxSeccomp, error) {
	if spec.Process == nil || spec.Process.Capabilities == nil {
		spec = &oci.Spec{Process: &oci.Process{Capabilities: new(oci.LinuxCapabilities)}}
	}
	profile, err := mobyseccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot make the default seccomp profile: %w", err)
	}
	return profile, nil
}

// launcherCalls is what nemoclaw-launch does under the first filter, less
// execve, without which nothing at all would start.
var launcherCalls = []string{"fcntl", "pread64", "chdir", "landlock_restrict_self", "openat", "close", "prlimit64", "seccomp", "write", "exit_group"}

// spareable is what the launcher does only where the profile lets it: without,
// init sets the limits of memory itself (runtime/limits.go).
const spareable = "prlimit64"

// Admit returns profile so that the launcher can do its work under it, and the
// denials that give the program no more than profile did: the calls that had
// to be let in are denied again by the second filter. The profile itself is
// not changed. Architectures other than this one are taken out of the result:
// on x86 socketcall(2) would open what the profile refuses, since its
// arguments lie behind a pointer.
func Admit(profile *oci.LinuxSeccomp) (*oci.LinuxSeccomp, []Denial, error) {
	out := *profile
	out.Architectures = []oci.Arch{nativeArch}
	out.Syscalls = slices.Clone(profile.Syscalls)
	horizon := horizon(profile)
	var again []Denial
	for _, name := range launcherCalls {
		action, errnoRet, err := answer(profile, name)
		if err == nil && passes(action) {
			continue
		}
		var denied Denial
		if err == nil {
			denied, err = denialFor(name, action, errnoRet)
		}
		switch {
		case err != nil && name == spareable:
			continue
		case err != nil:
			return nil, nil, err
		}
		if numbers[name] > horizon {
			denied.Errno = enosys
		}
		again = append(again, denied)
		out.Syscalls = append(without(out.Syscalls, name), oci.LinuxSyscall{Names: []string{name}, Action: oci.ActAllow})
	}
	if newer := overtaken(horizon, again); len(newer) > 0 {
		errnoRet := uint(enosys)
		out.Syscalls = append(out.Syscalls, oci.LinuxSyscall{Names: newer, Action: oci.ActErrno, ErrnoRet: &errnoRet})
	}
	return &out, again, nil
}

// horizon is the number of the newest call that profile names. libcontainer
// answers ENOSYS to every later one, unless the profile lets through what it does
// not name: its author could not have known them, and libc falls back on older
// calls when told so, but not when told EPERM.
func horizon(profile *oci.LinuxSeccomp) uint32 {
	newest := uint32(0)
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			newest = max(newest, numbers[name])
		}
	}
	if newest == 0 || passes(profile.DefaultAction) || profile.DefaultAction == oci.ActTrace {
		return math.MaxUint32
	}
	return newest
}

// overtaken are the calls beyond the horizon that no longer are, now that the
// profile names calls that the launcher needs: for them ENOSYS must be said.
func overtaken(horizon uint32, let []Denial) []string {
	newest := uint32(0)
	for _, d := range let {
		newest = max(newest, numbers[d.Call])
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		if nr := numbers[name]; nr > horizon && nr < newest && !slices.Contains(launcherCalls, name) {
			names = append(names, name)
		}
	}
	return names
}

// answer is what profile says to the call name, whatever its arguments. Where
// several rules name it, one that refuses counts: which of them the kernel would
// get depends on libcontainer, which drops those that equal the default, and on
// libseccomp.
func answer(profile *oci.LinuxSeccomp, name string) (oci.LinuxSeccompAction, *uint, error) {
	action, errnoRet := profile.DefaultAction, profile.DefaultErrnoRet
	found := false
	for _, rule := range profile.Syscalls {
		if !slices.Contains(rule.Names, name) {
			continue
		}
		if len(rule.Args) > 0 {
			return "", nil, fmt.Errorf("cannot start the launcher under the engine's seccomp profile: it restricts the arguments of %s", name)
		}
		if !found || passes(action) {
			action, errnoRet, found = rule.Action, rule.ErrnoRet, true
		}
	}
	return action, errnoRet, nil
}

func passes(action oci.LinuxSeccompAction) bool {
	return action == oci.ActAllow || action == oci.ActLog
}

func denialFor(name string, action oci.LinuxSeccompAction, errnoRet *uint) (Denial, error) {
	switch action {
	case oci.ActErrno:
		e := eperm // runc's default, as the runtime specification has it
		if errnoRet != nil {
			e = unix.Errno(*errnoRet)
		}
		return Denial{Call: name, Errno: e, Why: "the engine's profile denies it"}, nil
	case oci.ActKill, oci.ActKillThread, oci.ActKillProcess, oci.ActTrap:
		// Told no instead of killed: the call is denied all the same.
		return Denial{Call: name, Errno: eperm, Why: "the engine's profile kills for it"}, nil
	}
	return Denial{}, fmt.Errorf("cannot start the launcher under the engine's seccomp profile: it answers %s to %s", action, name)
}

// without returns rules with name taken out of them.
func without(rules []oci.LinuxSyscall, name string) []oci.LinuxSyscall {
	var out []oci.LinuxSyscall
	for _, r := range rules {
		if i := slices.Index(r.Names, name); i >= 0 {
			r.Names = slices.Delete(slices.Clone(r.Names), i, i+1)
		}
		if len(r.Names) > 0 {
			out = append(out, r)
		}
	}
	return out
}
