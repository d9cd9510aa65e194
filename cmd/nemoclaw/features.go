package main

import (
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/urfave/cli/v2"

	"nemoclaw/runtime"
	"nemoclaw/specs"
)

var featuresCommand = &cli.Command{
	Name:  "features",
	Usage: "print what this runtime can do, as engines ask for it",
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 0); err != nil {
			return err
		}
		return printJSON(c.App.Writer, runtimeFeatures())
	},
}

// runtimeFeatures answers as the runtime specification's features.md has it.
// Checkpoints are missing on purpose: a restored process has no Landlock
// domain.
func runtimeFeatures() *features.Features {
	yes, no := true, false
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: oci.Version,
		Hooks:         withoutHook(configs.KnownHookNames(), "startContainer"),
		MountOptions:  specconv.KnownMountOptions(),
		Annotations:   map[string]string{"io.nemoclaw.version": version, "org.opencontainers.runc.checkpoint.enabled": "false"},
		Linux: &features.Linux{
			Namespaces:      specconv.KnownNamespaces(),
			Capabilities:    specs.Ceiling,
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"bundle", "org.systemd.property.", runtime.PolicyAnnotation},
	}
	if seccomp.Enabled {
		f.Linux.Seccomp = &features.Seccomp{Enabled: &yes, Actions: seccomp.KnownActions(), Operators: seccomp.KnownOperators(),
			Archs: seccomp.KnownArchs(), KnownFlags: seccomp.KnownFlags(), SupportedFlags: seccomp.SupportedFlags()}
	}
	return f
}

func withoutHook(names []string, name string) []string {
	var out []string
	for _, n := range names {
		if n != name {
			out = append(out, n)
		}
	}
	return out
}
