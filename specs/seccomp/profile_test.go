package seccomp

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The launcher gets in under any profile, and the program gets no more than
// the profile gave: what was let in is denied again.
func TestAdmit(t *testing.T) {
	enoent := uint(unix.ENOENT)
	allow := func(names ...string) oci.LinuxSyscall {
		return oci.LinuxSyscall{Names: names, Action: oci.ActAllow}
	}
	everything := allow(launcherCalls...)
	for _, test := range []struct {
		name    string
		profile oci.LinuxSeccomp
		again   string // "call=ERRNO ..." of the second filter
		fault   string
	}{
		{"default allow", oci.LinuxSeccomp{DefaultAction: oci.ActAllow}, "", ""},
		{"all named", oci.LinuxSeccomp{DefaultAction: oci.ActErrno, Syscalls: []oci.LinuxSyscall{everything}}, "", ""},
		{"a call is missing", oci.LinuxSeccomp{DefaultAction: oci.ActErrno,
			Syscalls: []oci.LinuxSyscall{allow(slices.DeleteFunc(slices.Clone(launcherCalls), func(s string) bool { return s == "seccomp" })...)}},
			"seccomp=EPERM", ""},
		{"the default's errno", oci.LinuxSeccomp{DefaultAction: oci.ActErrno, DefaultErrnoRet: &enoent,
			Syscalls: []oci.LinuxSyscall{allow(launcherCalls[1:]...)}}, "fcntl=ENOENT", ""},
		{"denied by name", oci.LinuxSeccomp{DefaultAction: oci.ActAllow,
			Syscalls: []oci.LinuxSyscall{{Names: []string{"seccomp", "mount"}, Action: oci.ActErrno}}}, "seccomp=EPERM", ""},
		{"allowed and denied", oci.LinuxSeccomp{DefaultAction: oci.ActAllow, // libcontainer drops the first, which equals the default
			Syscalls: []oci.LinuxSyscall{allow("seccomp"), {Names: []string{"seccomp"}, Action: oci.ActErrno, ErrnoRet: &enoent}}}, "seccomp=ENOENT", ""},
		{"denied and allowed", oci.LinuxSeccomp{DefaultAction: oci.ActErrno, // the strictest counts
			Syscalls: []oci.LinuxSyscall{everything, {Names: []string{"seccomp"}, Action: oci.ActErrno, ErrnoRet: &enoent}, allow("seccomp")}}, "seccomp=ENOENT", ""},
		{"killed for", oci.LinuxSeccomp{DefaultAction: oci.ActKillProcess, Syscalls: []oci.LinuxSyscall{allow(launcherCalls[:len(launcherCalls)-1]...)}},
			"exit_group=EPERM", ""},
		{"by argument", oci.LinuxSeccomp{DefaultAction: oci.ActErrno, Syscalls: []oci.LinuxSyscall{everything,
			{Names: []string{"openat"}, Action: oci.ActAllow, Args: []oci.LinuxSeccompArg{{Index: 2}}}}},
			"", "restricts the arguments of openat"},
		{"by argument, what can be spared", oci.LinuxSeccomp{DefaultAction: oci.ActErrno, Syscalls: []oci.LinuxSyscall{
			allow(slices.DeleteFunc(slices.Clone(launcherCalls), func(s string) bool { return s == spareable })...),
			{Names: []string{spareable}, Action: oci.ActAllow, Args: []oci.LinuxSeccompArg{{Index: 2}}}}}, "", ""},
		{"asked of an agent", oci.LinuxSeccomp{DefaultAction: oci.ActNotify}, "", "answers SCMP_ACT_NOTIFY"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := slices.Clone(test.profile.Syscalls)
			got, again, err := Admit(&test.profile)
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Fatalf("error %v, want %q in it", err, test.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, d := range again {
				said = append(said, d.Call+"="+unix.ErrnoName(d.Errno))
			}
			if s := strings.Join(said, " "); s != test.again {
				t.Errorf("denied again: %q, want %q", s, test.again)
			}
			for _, name := range launcherCalls {
				if action, _, err := answer(got, name); name != spareable && (err != nil || action != oci.ActAllow) {
					t.Errorf("the launcher's %s: %v, %v", name, action, err)
				}
			}
			if len(got.Architectures) != 1 || got.Architectures[0] != nativeArch {
				t.Errorf("architectures %v, want %v alone", got.Architectures, nativeArch)
			}
			if len(before) != len(test.profile.Syscalls) {
				t.Error("the engine's profile was changed")
			}
		})
	}
}

// A call that the profile's author could not know is answered as libcontainer
// would have, although the profile now names newer ones for the launcher: libc
// falls back from ENOSYS, and not from EPERM.
func TestAdmitKeepsTheHorizon(t *testing.T) {
	old := &oci.LinuxSeccomp{DefaultAction: oci.ActErrno, Syscalls: []oci.LinuxSyscall{{Names: []string{"execve", "openat", "seccomp"}, Action: oci.ActAllow}}}
	got, again, err := Admit(old)
	if err != nil {
		t.Fatal(err)
	}
	if action, errno, _ := answer(got, "faccessat2"); action != oci.ActErrno || errno == nil || unix.Errno(*errno) != unix.ENOSYS {
		t.Errorf("faccessat2: %v %v, want ENOSYS", action, errno)
	}
	if action, errno, _ := answer(got, "mkdirat"); action != oci.ActErrno || errno != nil {
		t.Errorf("mkdirat: %v %v, want the profile's own answer", action, errno)
	}
	if i := slices.IndexFunc(again, func(d Denial) bool { return d.Call == "landlock_restrict_self" }); i < 0 || again[i].Errno != unix.ENOSYS {
		t.Errorf("landlock_restrict_self is denied again with %v, want ENOSYS", again)
	}
	// Where everything else is let through there is no horizon.
	open := &oci.LinuxSeccomp{DefaultAction: oci.ActAllow, Syscalls: []oci.LinuxSyscall{{Names: []string{"seccomp"}, Action: oci.ActErrno}}}
	if got, _, err = Admit(open); err != nil || len(got.Syscalls) != 1 {
		t.Errorf("%v, %v; want the launcher's call let in, and nothing else", got.Syscalls, err)
	}
}

// The calls that the first filter must let in are those that the launcher makes.
func TestLauncherCalls(t *testing.T) {
	source, err := os.ReadFile("../../cmd/nemoclaw-launch/launch.c")
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, m := range regexp.MustCompile(`__NR_(\w+)`).FindAllSubmatch(source, -1) {
		if name := string(m[1]); name != "execve" && !slices.Contains(made, name) {
			made = append(made, name)
		}
	}
	listed := slices.Sorted(slices.Values(launcherCalls))
	if slices.Sort(made); !slices.Equal(made, listed) {
		t.Errorf("it makes %v, the profile is widened by %v", made, listed)
	}
}

// The launcher works under Docker's profile as it is.
func TestDefaultAdmitsLauncher(t *testing.T) {
	profile, err := Default(&oci.Spec{Process: &oci.Process{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := Admit(profile); err != nil || len(again) > 0 {
		t.Errorf("denied again %v, error %v; want neither", again, err)
	}
}
