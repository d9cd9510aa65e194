package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"nemoclaw/runtime"
)

var execCommand = &cli.Command{
	Name:      "exec",
	Usage:     "run another program in a container, under the same policy",
	ArgsUsage: "CONTAINER COMMAND [ARGUMENT...]  |  --process FILE CONTAINER",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "console-socket", Usage: "send the terminal to the unix socket `FILE`"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "send the process's pidfd to the unix socket `FILE`"},
		&cli.StringFlag{Name: "cwd", Usage: "work in `DIR`; it grants nothing"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `NAME=VALUE` to the environment"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `UID[:GID]`"},
		&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "add a group"},
		&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "read the process from `FILE` (JSON)"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not stay with it"},
		&cli.StringFlag{Name: "pid-file", Usage: "write its pid to `FILE`"},
		&cli.StringFlag{Name: "process-label", Usage: "set its SELinux label"},
		&cli.StringFlag{Name: "apparmor", Usage: "set its AppArmor profile"},
		&cli.BoolFlag{Name: "no-new-privs", Usage: "always set"},
		&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "add a capability, up to the ceiling"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` descriptors from 3 on to the program"},
		&cli.StringSliceFlag{Name: "cgroup", Usage: "run in a cgroup below the container's"},
		&cli.BoolFlag{Name: "ignore-paused", Usage: "allow it in a paused container"},
	},
	Action: onID(-1, func(c *cli.Context, r *runtime.Runtime, id string) error {
		status, err := execute(c, r, id)
		if err != nil {
			return &execError{fmt.Errorf("exec failed: %w", err)}
		}
		return ended(status, nil)
	}),
}

func execute(c *cli.Context, r *runtime.Runtime, id string) (int, error) {
	ctr, err := r.Load(id)
	if err != nil {
		return -1, err
	}
	o := runtime.ExecOptions{Detach: c.Bool("detach"), PreserveFDs: c.Int("preserve-fds"), IgnorePaused: c.Bool("ignore-paused")}
	for flag, to := range map[string]*string{"console-socket": &o.ConsoleSocket, "pidfd-socket": &o.PidfdSocket, "pid-file": &o.PidFile} {
		if *to, err = absolute(c.String(flag)); err != nil {
			return -1, err
		}
	}
	if o.SubCgroups, err = subCgroups(c.StringSlice("cgroup")); err != nil {
		return -1, err
	}
	process, err := execProcess(c, ctr)
	if err != nil {
		return -1, err
	}
	return r.Exec(ctr, process, o)
}

// execProcess is the process of --process, or the container's own with what
// the flags say.
func execProcess(c *cli.Context, ctr *libcontainer.Container) (*oci.Process, error) {
	if file := c.String("process"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		p := new(oci.Process)
		return p, json.Unmarshal(b, p)
	}
	if c.NArg() < 2 {
		return nil, errors.New("exec args cannot be empty")
	}
	// The label was set by libcontainer at create; a spec annotation of that
	// name is dropped there, so it cannot name another bundle.
	bundle, ok := utils.SearchLabels(ctr.Config().Labels, "bundle")
	if !ok {
		return nil, errors.New("bundle not found in labels")
	}
	spec, err := runtime.LoadSpec(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args = c.Args().Tail()
	p.Env = append(p.Env, c.StringSlice("env")...)
	p.Terminal = c.Bool("tty")
	for flag, to := range map[string]*string{"cwd": &p.Cwd, "apparmor": &p.ApparmorProfile, "process-label": &p.SelinuxLabel} {
		if v := c.String(flag); v != "" {
			*to = v
		}
	}
	addCapabilities(p, c.StringSlice("cap"))
	for _, gid := range c.Int64Slice("additional-gids") {
		if gid < 0 {
			return nil, fmt.Errorf("additional-gids must be a positive number %d", gid)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
	}
	return p, setUser(p, c.String("user"))
}

func addCapabilities(p *oci.Process, caps []string) {
	if len(caps) == 0 {
		return
	}
	if p.Capabilities == nil {
		p.Capabilities = new(oci.LinuxCapabilities)
	}
	for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
		*set = append(slices.Clone(*set), caps...)
	}
}

func setUser(p *oci.Process, user string) error {
	if user == "" {
		return nil
	}
	uid, gid, both := strings.Cut(user, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("bad uid: %w", err)
	}
	p.User.UID = uint32(n)
	if both {
		if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
			return fmt.Errorf("bad gid: %w", err)
		}
		p.User.GID = uint32(n)
	}
	return nil
}

// subCgroups reads --cgroup: one path (cgroup v2), or CONTROLLER[,...]:PATH.
func subCgroups(args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	paths := map[string]string{}
	for _, a := range args {
		controllers, path, named := strings.Cut(a, ":")
		if !named {
			if len(args) > 1 {
				return nil, fmt.Errorf("invalid --cgroup argument: %s (missing <controller>: prefix)", a)
			}
			return map[string]string{"": a}, nil
		}
		for name := range strings.SplitSeq(controllers, ",") {
			if _, twice := paths[name]; twice || name == "" {
				return nil, fmt.Errorf("invalid --cgroup argument: %s", a)
			}
			paths[name] = path
		}
	}
	return paths, nil
}
