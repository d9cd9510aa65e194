package main

import (
	"os"
	"strings"
)

var surveyVerbs = map[string]verb{
	// capabilities: the five sets, hexadecimal.
	"capabilities": func([]string) (string, error) {
		var sets []string
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			v, err := processVerbs["status"]([]string{set})
			if err != nil {
				return "", err
			}
			sets = append(sets, set+"="+v)
		}
		return strings.Join(sets, " "), nil
	},
	// mounts: point=type:options of each, separated by blanks.
	"mounts": func([]string) (string, error) {
		b, err := os.ReadFile("/proc/self/mountinfo")
		var out []string
		for line := range strings.Lines(string(b)) {
			// id parent major:minor root point options [fields] - type source super (proc_pid_mountinfo(5))
			left, right, _ := strings.Cut(line, " - ")
			l, r := strings.Fields(left), strings.Fields(right)
			if len(l) >= 6 && len(r) >= 3 {
				out = append(out, l[4]+"="+r[0]+":"+l[5])
			}
		}
		return strings.Join(out, " "), err
	},
	// namespaces: kind=inode of each.
	"namespaces": func([]string) (string, error) {
		var out []string
		for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} {
			to, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				return "", err
			}
			out = append(out, kind+"="+to)
		}
		return strings.Join(out, " "), nil
	},
	"env": func(a []string) (string, error) { return os.Getenv(a[0]), nil },
}
