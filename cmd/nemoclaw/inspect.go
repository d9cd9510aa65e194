package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/urfave/cli/v2"

	"nemoclaw/runtime"
)

// containerState is what state and list print, field by field as runc does.
type containerState struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func stateOf(ctr *libcontainer.Container) (*containerState, error) {
	status, err := ctr.Status()
	if err != nil {
		return nil, err
	}
	state, err := ctr.State()
	if err != nil {
		return nil, err
	}
	pid := state.InitProcessPid
	if status == libcontainer.Stopped {
		pid = 0
	}
	bundle, annotations := utils.Annotations(state.Config.Labels)
	return &containerState{Version: state.Config.Version, ID: state.ID, Pid: pid, Status: status.String(),
		Bundle: bundle, Rootfs: state.Config.Rootfs, Created: state.Created, Annotations: annotations}, nil
}

var stateCommand = &cli.Command{
	Name:      "state",
	Usage:     "print what is known of a container",
	ArgsUsage: "CONTAINER",
	Action: onContainer(1, func(c *cli.Context, ctr *libcontainer.Container) error {
		s, err := stateOf(ctr)
		if err != nil {
			return err
		}
		return printJSON(c.App.Writer, s)
	}),
}

var listCommand = &cli.Command{
	Name:  "list",
	Usage: "list the containers below --root",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "table or json"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print ids only"},
	},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 0); err != nil {
			return err
		}
		r, err := engine(c)
		if err != nil {
			return err
		}
		all, err := allStates(r, c.IsSet("root"))
		if err != nil {
			return err
		}
		switch format := c.String("format"); {
		case c.Bool("quiet"):
			for _, s := range all {
				fmt.Fprintln(c.App.Writer, s.ID)
			}
			return nil
		case format == "json":
			return json.NewEncoder(c.App.Writer).Encode(all)
		case format != "table":
			return usageError{errors.New("invalid format option")}
		}
		w := tabwriter.NewWriter(c.App.Writer, 12, 1, 3, ' ', 0)
		fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
		for _, s := range all {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
		}
		return w.Flush()
	},
}

func allStates(r *runtime.Runtime, asked bool) ([]containerState, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, os.ErrNotExist) && !asked {
		return nil, nil // no container has been created yet
	}
	if err != nil {
		return nil, err
	}
	var all []containerState
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() {
			continue // deleted meanwhile, or none of ours
		}
		ctr, err := r.Load(e.Name())
		if err != nil {
			continue
		}
		s, err := stateOf(ctr)
		if err != nil {
			continue
		}
		s.Owner = "#" + strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
		all = append(all, *s)
	}
	return all, nil
}

var psCommand = &cli.Command{
	Name:      "ps",
	Usage:     "list the processes of a container",
	ArgsUsage: "CONTAINER [OPTIONS OF PS]",
	Flags:     []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "table or json"}},
	Action: onContainer(-1, func(c *cli.Context, ctr *libcontainer.Container) error {
		pids, err := ctr.Processes()
		if err != nil {
			return err
		}
		switch c.String("format") {
		case "json":
			return json.NewEncoder(c.App.Writer).Encode(pids)
		case "table":
			return psTable(c.App.Writer, pids, c.Args().Tail())
		}
		return usageError{errors.New("invalid format option")}
	}),
}

// psTable prints the lines of ps(1) that are about pids.
func psTable(w io.Writer, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.Command("ps", options...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	column := -1
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if column < 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return errors.New("couldn't find PID field in ps output")
			}
			fmt.Fprint(w, line)
			continue
		}
		if column >= len(fields) {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprint(w, line)
		}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}
