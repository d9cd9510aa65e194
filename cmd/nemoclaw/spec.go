package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/urfave/cli/v2"
)

var specCommand = &cli.Command{
	Name:  "spec",
	Usage: "write a config.json to begin with",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's `DIR`; default: this one"},
		&cli.BoolFlag{Name: "rootless", Usage: "for an unprivileged user"},
	},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 0); err != nil {
			return err
		}
		s := specconv.Example()
		if c.Bool("rootless") {
			specconv.ToRootless(s)
		}
		b, err := json.MarshalIndent(s, "", "\t")
		if err != nil {
			return err
		}
		file := filepath.Join(c.String("bundle"), "config.json")
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if os.IsExist(err) {
			return fmt.Errorf("cannot write %s: it exists; remove it first", file)
		}
		if err != nil {
			return err
		}
		_, err = f.Write(append(b, '\n'))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	},
}
