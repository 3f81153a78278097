raise ModuleNotFoundError("run these as scripts: python data_prep/NAME.py --help; what is worth importing is in unified/")
