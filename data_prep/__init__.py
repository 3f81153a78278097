raise ModuleNotFoundError("run these as scripts: python data_prep/NAME.py; what is worth importing is in unified/")
