package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

var repairCommand = &cli.Command{
	Name:      "repair",
	Usage:     "start the gateway of a sandbox again that was lost; without ID sweep away what dead sandboxes left",
	ArgsUsage: "[ID]",
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 1); err != nil {
			return err
		}
		if !c.Args().Present() {
			return runtime(c, "repair")
		}
		s, err := find(c.Args().First())
		if err != nil {
			return err
		}
		return runtime(c, "--root", s.Root, "repair", s.ID)
	},
}

// runtime has nemoclaw, which lies beside us, do what takes more than asking.
func runtime(c *cli.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find nemoclaw: %w", err)
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(self), "nemoclaw"), args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = c.App.Writer, &said
	if err := cmd.Run(); err != nil {
		text, hint, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(said.String()), "nemoclaw: "), "\nnemoclaw: hint: ")
		if text == "" {
			text = "cannot run nemoclaw: " + err.Error()
		}
		return hinted{errors.New(text), hint}
	}
	return nil
}
